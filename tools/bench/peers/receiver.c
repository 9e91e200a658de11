/* The receiver of the comparison: one for every peer, in C, so that it takes little
 * of the machine that it shares with them and never pauses.
 *
 *     receiver SECRET_KEY
 *
 * It listens on a free port of 127.0.0.1, which it prints. Every POST must carry the
 * signature that docs/reference/api.md describes, over its own body; then it is
 * answered with `success` and noted in a ledger: the number in Taskd-Task-No, and when
 * it arrived. Any other POST gets 401 and is counted as refused.
 *
 *     GET /count    {"delivered": N, "refused": N, "last_us": N}
 *     GET /ledger   [[number, arrival in Unix us], ...], and begins a new ledger
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "sha256.h"

enum { BUFFER = 65536, EVENTS = 64, SIGNED = 256 };

struct connection {
    int fd;
    size_t used;
    char buffer[BUFFER];
};

struct delivery {
    uint64_t number, at_us;
};

static struct hmac_key key;
static struct delivery *ledger;
static size_t ledger_used, ledger_size;
static uint64_t delivered, refused, last_us;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void *grown(void *memory, size_t size) {
    memory = realloc(memory, size);
    if (memory == NULL) die("receiver: memory");
    return memory;
}

static uint64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static void note(uint64_t number) {
    if (ledger_used == ledger_size) {
        ledger_size = ledger_size ? 2 * ledger_size : 65536;
        ledger = grown(ledger, ledger_size * sizeof *ledger);
    }
    last_us = now_us();
    ledger[ledger_used++] = (struct delivery){number, last_us};
    delivered++;
}

/* Everything to the client; what it does not read in time closes the connection. */
static int send_all(int fd, const char *data, size_t length) {
    while (length > 0) {
        ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent <= 0) return -1;
        data += sent;
        length -= (size_t)sent;
    }
    return 0;
}

static int answer(int fd, const char *status, const char *body, size_t length) {
    char head[160];
    int written = snprintf(head, sizeof head, "HTTP/1.1 %s\r\nContent-Length: %zu\r\n\r\n",
                           status, length);
    if (length + (size_t)written <= sizeof head) { /* one segment where it is short */
        memcpy(head + written, body, length);
        return send_all(fd, head, (size_t)written + length);
    }
    return send_all(fd, head, (size_t)written) || send_all(fd, body, length) ? -1 : 0;
}

struct text {
    const char *start;
    size_t length;
};

/* A header's value; of length 0 where the header is not there. */
static struct text header(const char *head, const char *end, const char *name) {
    size_t length = strlen(name);
    for (const char *line = head; line < end;) {
        const char *stop = memmem(line, (size_t)(end - line), "\r\n", 2);
        if (stop == NULL) stop = end;
        if ((size_t)(stop - line) > length && line[length] == ':' &&
            strncasecmp(line, name, length) == 0) {
            const char *value = line + length + 1;
            while (value < stop && *value == ' ') value++;
            while (stop > value && stop[-1] == ' ') stop--;
            return (struct text){value, (size_t)(stop - value)};
        }
        line = stop + 2;
    }
    return (struct text){end, 0};
}

/* An unsigned decimal; -1 where the text is none. */
static int64_t number_of(struct text text) {
    int64_t number = 0;
    if (text.length == 0 || text.length > 18) return -1;
    for (size_t i = 0; i < text.length; i++) {
        if (text.start[i] < '0' || text.start[i] > '9') return -1;
        number = number * 10 + (text.start[i] - '0');
    }
    return number;
}

static size_t base64(const uint8_t *data, size_t length, char *out) {
    static const char digits[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t used = 0;
    for (size_t i = 0; i < length; i += 3) {
        uint32_t three = (uint32_t)data[i] << 16;
        if (i + 1 < length) three |= (uint32_t)data[i + 1] << 8;
        if (i + 2 < length) three |= data[i + 2];
        out[used++] = digits[three >> 18];
        out[used++] = digits[three >> 12 & 63];
        out[used++] = i + 1 < length ? digits[three >> 6 & 63] : '=';
        out[used++] = i + 2 < length ? digits[three & 63] : '=';
    }
    return used;
}

/* Whether the headers sign this body: payload = hex(SHA-256(body)), and
 * signature = base64(hex(HMAC-SHA256(key, timestamps + nonce + payload))). */
static int signed_right(const char *head, const char *end, const char *body, size_t length) {
    struct text timestamps = header(head, end, "timestamps");
    struct text nonce = header(head, end, "nonce");
    struct text payload = header(head, end, "payload");
    struct text signature = header(head, end, "signature");
    uint8_t digest[32];
    char hex[64], message[SIGNED], expected[96];

    if (timestamps.length == 0 || nonce.length < 16 || payload.length != 64 ||
        timestamps.length + nonce.length + payload.length > sizeof message)
        return 0;
    sha256((const uint8_t *)body, length, digest);
    hex_of(digest, hex);
    if (memcmp(hex, payload.start, 64) != 0) return 0;

    size_t used = 0;
    struct text parts[] = {timestamps, nonce, payload};
    for (size_t i = 0; i < 3; i++) {
        memcpy(message + used, parts[i].start, parts[i].length);
        used += parts[i].length;
    }
    hmac_sha256(&key, (const uint8_t *)message, used, digest);
    hex_of(digest, hex);
    size_t wanted = base64((const uint8_t *)hex, 64, expected);
    return signature.length == wanted && memcmp(expected, signature.start, wanted) == 0;
}

static int tell_count(int fd) {
    char body[160];
    int length = snprintf(body, sizeof body,
                          "{\"delivered\": %llu, \"refused\": %llu, \"last_us\": %llu}",
                          (unsigned long long)delivered, (unsigned long long)refused,
                          (unsigned long long)last_us);
    return answer(fd, "200 OK", body, (size_t)length);
}

static int tell_ledger(int fd) {
    char *body = grown(NULL, ledger_used * 48 + 3);
    size_t used = 0;
    body[used++] = '[';
    for (size_t i = 0; i < ledger_used; i++)
        used += (size_t)sprintf(body + used, "%s[%llu,%llu]", i ? "," : "",
                                (unsigned long long)ledger[i].number,
                                (unsigned long long)ledger[i].at_us);
    body[used++] = ']';
    ledger_used = 0;
    delivered = 0;
    refused = 0;
    int result = answer(fd, "200 OK", body, used);
    free(body);
    return result;
}

static int respond(int fd, const char *head, const char *end, const char *body, size_t length) {
    if (strncmp(head, "GET /count ", 11) == 0) return tell_count(fd);
    if (strncmp(head, "GET /ledger ", 12) == 0) return tell_ledger(fd);
    int64_t number = number_of(header(head, end, "taskd-task-no"));
    if (strncmp(head, "POST ", 5) != 0 || number < 0 || !signed_right(head, end, body, length)) {
        refused++;
        return answer(fd, "401 Unauthorized", "refused", 7);
    }
    note((uint64_t)number);
    return answer(fd, "200 OK", "success", 7);
}

/* Answer the complete requests in a buffer; -1 to close the connection. */
static int serve(struct connection *client) {
    char *start = client->buffer, *stop = client->buffer + client->used;
    while (start < stop) {
        char *end = memmem(start, (size_t)(stop - start), "\r\n\r\n", 4);
        if (end == NULL) break;
        struct text told = header(start, end, "content-length");
        int64_t length = told.length == 0 ? 0 : number_of(told);
        if (length < 0 || length > BUFFER / 2) return -1;
        char *body = end + 4;
        if (stop - body < length) break;
        if (respond(client->fd, start, end, body, (size_t)length) != 0) return -1;
        start = body + length;
    }
    client->used = (size_t)(stop - start);
    memmove(client->buffer, start, client->used);
    return client->used == BUFFER ? -1 : 0;
}

static void read_from(struct connection *client) {
    ssize_t got =
        recv(client->fd, client->buffer + client->used, BUFFER - client->used, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got > 0) {
        client->used += (size_t)got;
        if (serve(client) == 0) return;
    }
    close(client->fd); /* which also takes it out of the epoll set */
    free(client);
}

static void accept_one(int listener, int epoll) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC), one = 1;
    if (fd < 0) return;
    struct timeval patience = {.tv_sec = 10};
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    struct connection *client = grown(NULL, sizeof *client);
    client->fd = fd;
    client->used = 0;
    struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = client};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &wanted) != 0) die("receiver: epoll_ctl");
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: receiver SECRET_KEY\n");
        return 2;
    }
    hmac_prepare(&key, (const uint8_t *)argv[1], strlen(argv[1]));

    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) != 0 ||
        listen(listener, 1024) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) != 0)
        die("receiver: listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);

    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS];
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &wanted) != 0)
        die("receiver: epoll");
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr == NULL)
                accept_one(listener, epoll);
            else
                read_from(events[i].data.ptr);
        }
    }
}
