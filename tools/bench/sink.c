/* A receiver that takes little of the machine: one epoll loop, no checks.
 *
 * It answers "success" to every complete POST and notes when each arrived. The
 * ledger, a JSON list of [task id, arrival in Unix ms], is asked for over the same
 * port with GET /ledger, which also empties it. Prints its port. The interface is
 * that of tools/bench/receiver.py, which stands in where there is no C compiler.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define ANSWER "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nsuccess"
#define CONNECTIONS 65536
#define READ_AT_ONCE 65536
#define LEDGER_LINE 48

struct buffer {
    char *bytes;
    size_t used, size;
};

struct arrival {
    long long task;
    double at_ms;
};

static struct buffer buffers[CONNECTIONS];
static struct arrival *ledger;
static size_t arrivals, room;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void *grown(void *memory, size_t size)
{
    memory = realloc(memory, size);
    if (memory == NULL)
        fail("realloc");
    return memory;
}

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

/* The number in the header of this name ("\nname:") within a head that ends in NUL. */
static long long number(const char *head, const char *name)
{
    const char *found = strcasestr(head, name);
    return found == NULL ? -1 : atoll(found + strlen(name));
}

static int send_all(int fd, const char *bytes, size_t left)
{
    while (left > 0) {
        ssize_t sent = send(fd, bytes, left, MSG_NOSIGNAL);
        if (sent > 0) {
            bytes += sent;
            left -= (size_t)sent;
        } else if (sent < 0 && (errno == EAGAIN || errno == EINTR)) {
            struct pollfd writable = {.fd = fd, .events = POLLOUT};
            poll(&writable, 1, 1000);
        } else {
            return -1;
        }
    }
    return 0;
}

static int tell(int fd)
{
    char *text = grown(NULL, arrivals * LEDGER_LINE + 16);
    char head[96];
    size_t length = 0;
    text[length++] = '[';
    for (size_t n = 0; n < arrivals; n++)
        length += (size_t)sprintf(text + length, "%s[%lld,%.3f]", n ? "," : "", ledger[n].task,
                                  ledger[n].at_ms);
    text[length++] = ']';
    int size = sprintf(head, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", length);
    arrivals = 0;
    int failed = send_all(fd, head, (size_t)size) || send_all(fd, text, length);
    free(text);
    return failed ? -1 : 0;
}

static void note(long long task)
{
    if (arrivals == room) {
        room = room ? room * 2 : 65536;
        ledger = grown(ledger, room * sizeof *ledger);
    }
    ledger[arrivals++] = (struct arrival){task, now_ms()};
}

/* Answers what is complete; -1 if the connection is to be closed. */
static int answer(int fd, struct buffer *buffer)
{
    for (;;) {
        char *end = memmem(buffer->bytes, buffer->used, "\r\n\r\n", 4);
        if (end == NULL)
            return 0;
        size_t head = (size_t)(end - buffer->bytes) + 4;
        size_t body = 0;
        end[2] = '\0'; /* after the last header's line; mended below */
        int asked = strncmp(buffer->bytes, "GET /ledger", 11) == 0;
        long long task = number(buffer->bytes, "\ntaskd-task-id:");
        long long length = number(buffer->bytes, "\ncontent-length:");
        end[2] = '\r';
        if (!asked) {
            if (length < 0)
                return -1;
            body = (size_t)length;
            if (buffer->used < head + body)
                return 0;
            note(task);
        }
        buffer->used -= head + body;
        memmove(buffer->bytes, buffer->bytes + head + body, buffer->used);
        if (asked ? tell(fd) : send_all(fd, ANSWER, sizeof ANSWER - 1))
            return -1;
    }
}

static int take(int fd, struct buffer *buffer)
{
    if (buffer->size < buffer->used + READ_AT_ONCE + 1) {
        buffer->size = buffer->used + READ_AT_ONCE + 1;
        buffer->bytes = grown(buffer->bytes, buffer->size);
    }
    ssize_t got = recv(fd, buffer->bytes + buffer->used, READ_AT_ONCE, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (got <= 0)
        return -1;
    buffer->used += (size_t)got;
    return answer(fd, buffer);
}

static void greet(int loop, int listener)
{
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        if (fd >= CONNECTIONS) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        buffers[fd].used = 0;
        if (epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event))
            fail("epoll_ctl");
    }
}

int main(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int loop = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event events[256], event = {.events = EPOLLIN, .data.fd = listener};
    if (listener < 0 || loop < 0 || bind(listener, (struct sockaddr *)&address, sizeof address)
        || listen(listener, 4096) || getsockname(listener, (struct sockaddr *)&address, &size)
        || epoll_ctl(loop, EPOLL_CTL_ADD, listener, &event))
        fail("the receiver can't listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int ready = epoll_wait(loop, events, 256, -1);
        for (int n = 0; n < ready; n++) {
            int fd = events[n].data.fd;
            if (fd == listener)
                greet(loop, listener);
            else if (take(fd, &buffers[fd]))
                close(fd);
        }
    }
}
