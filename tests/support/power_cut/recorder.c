/* Preloaded into a process, records what it does to the files of one SQLite store, and what it
 * sends on sockets, in one order (see recording.py for the events).
 *
 *   POWER_CUT_STORE     the database's path, without symbolic links; its name is the beginning
 *                       of the names of all files that are watched
 *   POWER_CUT_RECORD    the recording; events are appended to it. Without it nothing is recorded
 *   POWER_CUT_UNSYNCED  the name of a file whose syncs are left out, though they seem to
 *                       succeed; "*" for all files of the process
 *
 * An event is appended by one write to a file that is open with O_APPEND, so all threads and
 * processes share one order. A write is recorded after it was made, a sync at its beginning
 * and at its end, and what is sent before it is sent. So a write is taken as synced only if it
 * had ended before the sync began, and an answer as given from the earliest moment on at which
 * its reader may have it. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { START = 1, OPENED, REMOVED, RENAMED, WRITTEN, CUT, SYNCING, SYNCED, SENDING, SENT };

#define MAGIC 0x54554350u /* at the beginning of an event */
#define WHOLE 0x444e4550u /* at its end, which it lacks if a kill came in the midst of it */
#define FILES 64
#define INDEX_HEAD 136 /* of a -shm: its header, twice, and the state of checkpoints */
#define INDEX_COPY 48

struct head {
    uint32_t magic, kind;
    uint64_t inode;
    int64_t place, number;
    uint32_t pid, length;
};

static struct file {
    _Atomic uint64_t inode; /* 0: none */
    dev_t device;
    int unsynced;
} files[FILES];
static char folder[PATH_MAX], name[NAME_MAX + 1];
static const char *unsynced;
static struct stat folder_status;
static int record = -1;
static _Atomic int index_fd = -1;
static _Atomic int64_t numbers;
static __thread unsigned char index_known[INDEX_HEAD];
static __thread int within; /* what the recorder does itself is not recorded */

#define REAL(result, symbol, ...)                                                       \
    static result (*real)(__VA_ARGS__);                                                 \
    if (!real) real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #symbol)

static ssize_t real_writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    return real(fd, parts, count);
}

static ssize_t real_pread(int fd, void *data, size_t size, off_t place) {
    REAL(ssize_t, pread, int, void *, size_t, off_t);
    return real(fd, data, size, place);
}

static void append(int kind, uint64_t inode, int64_t place, int64_t number,
                   const struct iovec *parts, int count) {
    struct iovec all[IOV_MAX];
    struct head head = {MAGIC, kind, inode, place, number, getpid(), 0};
    uint32_t whole = WHOLE;
    int kept = errno, used = 1;
    all[0] = (struct iovec){&head, sizeof head};
    for (int i = 0; i < count && used < IOV_MAX - 1; i++) {
        all[used++] = parts[i];
        head.length += parts[i].iov_len;
    }
    all[used++] = (struct iovec){&whole, sizeof whole};
    if (real_writev(record, all, used) != (ssize_t)(sizeof head + head.length + sizeof whole)) {
        static const char told[] = "power cut: an event could not be recorded\n";
        ssize_t ignored = write(2, told, sizeof told - 1);
        (void)ignored;
        abort();
    }
    errno = kept;
}

/* The log's index is written to through memory. What its beginning has become meanwhile is
 * recorded before each other event. While its two copies differ it is being written. */
static void note_index(void) {
    unsigned char now[INDEX_HEAD];
    struct stat status;
    int kept = errno;
    if (index_fd >= 0 && real_pread(index_fd, now, sizeof now, 0) == (ssize_t)sizeof now
        && memcmp(now, now + INDEX_COPY, INDEX_COPY) == 0
        && memcmp(now, index_known, sizeof now) != 0 && fstat(index_fd, &status) == 0
        && status.st_nlink) {
        struct iovec part = {now, sizeof now};
        memcpy(index_known, now, sizeof now);
        append(WRITTEN, status.st_ino, 0, 0, &part, 1);
    }
    errno = kept;
}

static void note(int kind, uint64_t inode, int64_t place, int64_t number, const void *data,
                 size_t size) {
    struct iovec part = {(void *)data, size};
    if (record < 0 || within) return;
    within = 1;
    note_index();
    append(kind, inode, place, number, &part, 1);
    within = 0;
}

__attribute__((constructor)) static void begin(void) {
    const char *store = getenv("POWER_CUT_STORE"), *path = getenv("POWER_CUT_RECORD");
    unsynced = getenv("POWER_CUT_UNSYNCED");
    if (!store || !path) return;
    const char *slash = strrchr(store, '/');
    snprintf(folder, sizeof folder, "%.*s", (int)(slash - store), store);
    snprintf(name, sizeof name, "%s", slash + 1);
    if (stat(folder, &folder_status) != 0) abort();
    /* High up, so that the process gets the descriptors that it would get without us. */
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0 || (record = fcntl(fd, F_DUPFD_CLOEXEC, 900)) < 0) abort();
    close(fd);
    note(START, folder_status.st_ino, 0, 0, "", 0);
}

static struct file *file_of(int fd, struct stat *status) {
    if (record < 0 || within || fstat(fd, status) != 0 || !S_ISREG(status->st_mode)) return NULL;
    for (int i = 0; i < FILES; i++)
        if (files[i].inode == status->st_ino && files[i].device == status->st_dev)
            return &files[i];
    return NULL;
}

/* The name of a path in the store's folder, if it is one of the store's files. */
static const char *watched(const char *path) {
    const char *slash = strrchr(path, '/'), *last = slash ? slash + 1 : path;
    return record >= 0 && !within && strncmp(last, name, strlen(name)) == 0 ? last : NULL;
}

static void opened(int fd, const char *path, int flags) {
    char link[64], found[PATH_MAX];
    struct stat status;
    int kept = errno;
    if (fd < 0 || !watched(path)) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, found, sizeof found - 1);
    if (length < 0 || fstat(fd, &status) != 0) abort();
    found[length] = 0;
    char *slash = strrchr(found, '/');
    *slash = 0;
    if (strcmp(found, folder) == 0 && S_ISREG(status.st_mode)) {
        const char *last = slash + 1;
        int known = 0;
        for (int i = 0; i < FILES && !known; i++) known = files[i].inode == status.st_ino;
        for (int i = 0; i < FILES && !known; i++) {
            uint64_t none = 0;
            if (atomic_compare_exchange_strong(&files[i].inode, &none, status.st_ino)) {
                files[i].device = status.st_dev;
                files[i].unsynced = unsynced && strcmp(unsynced, last) == 0;
                known = 1;
            }
        }
        if (!known) abort();
        note(OPENED, status.st_ino, status.st_size, flags, last, strlen(last));
        if (!strcmp(last + strlen(name), "-shm")) {
            /* Never closed: the process would lose SQLite's locks. */
            REAL(int, open, const char *, int, ...);
            index_fd = real(link, O_RDONLY | O_CLOEXEC, 0);
        }
    }
    errno = kept;
}

#define OPEN(symbol)                                                                    \
    int symbol(const char *path, int flags, ...) {                                      \
        REAL(int, symbol, const char *, int, ...);                                      \
        va_list rest;                                                                   \
        va_start(rest, flags);                                                          \
        int fd = real(path, flags, va_arg(rest, mode_t));                               \
        va_end(rest);                                                                   \
        opened(fd, path, flags);                                                        \
        return fd;                                                                      \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(symbol)                                                                  \
    int symbol(int at, const char *path, int flags, ...) {                              \
        REAL(int, symbol, int, const char *, int, ...);                                 \
        va_list rest;                                                                   \
        va_start(rest, flags);                                                          \
        int fd = real(at, path, flags, va_arg(rest, mode_t));                           \
        va_end(rest);                                                                   \
        opened(fd, path, flags);                                                        \
        return fd;                                                                      \
    }
OPENAT(openat)
OPENAT(openat64)

static void removed(const char *path, const struct stat *status) {
    const char *last = watched(path);
    if (!last) return;
    for (int i = 0; i < FILES; i++)
        if (files[i].inode == status->st_ino && status->st_nlink == 1) files[i].inode = 0;
    note(REMOVED, status->st_ino, 0, 0, last, strlen(last));
}

int unlink(const char *path) {
    REAL(int, unlink, const char *);
    struct stat status = {0};
    if (watched(path) && stat(path, &status) != 0) status.st_ino = 0;
    int failed = real(path);
    if (!failed) removed(path, &status);
    return failed;
}

int unlinkat(int at, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    struct stat status = {0};
    if (watched(path) && fstatat(at, path, &status, 0) != 0) status.st_ino = 0;
    int failed = real(at, path, flags);
    if (!failed) removed(path, &status);
    return failed;
}

static void renamed(const char *from, const char *to) {
    char both[2 * NAME_MAX + 2];
    const char *old = watched(from), *new = strrchr(to, '/') ? strrchr(to, '/') + 1 : to;
    if (!old && !watched(to)) return;
    old = strrchr(from, '/') ? strrchr(from, '/') + 1 : from;
    int length = snprintf(both, sizeof both, "%s/%s", old, new);
    note(RENAMED, 0, 0, 0, both, length);
}

int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    int failed = real(from, to);
    if (!failed) renamed(from, to);
    return failed;
}

int renameat(int at, const char *from, int into, const char *to) {
    REAL(int, renameat, int, const char *, int, const char *);
    int failed = real(at, from, into, to);
    if (!failed) renamed(from, to);
    return failed;
}

static void written(int fd, off_t place, const struct iovec *parts, int count, ssize_t done) {
    struct stat status;
    if (done <= 0 || !file_of(fd, &status)) return;
    size_t size = 0, left = done;
    for (int i = 0; i < count; i++) size += parts[i].iov_len;
    char *data = malloc(size);
    if (!data) abort();
    size = 0;
    for (int i = 0; i < count; size += parts[i++].iov_len)
        memcpy(data + size, parts[i].iov_base, parts[i].iov_len);
    note(WRITTEN, status.st_ino, place, 0, data, left);
    free(data);
}

#define PWRITE(symbol, offset)                                                          \
    ssize_t symbol(int fd, const void *data, size_t size, offset place) {               \
        REAL(ssize_t, symbol, int, const void *, size_t, offset);                       \
        ssize_t done = real(fd, data, size, place);                                     \
        struct iovec part = {(void *)data, size};                                       \
        written(fd, place, &part, 1, done);                                             \
        return done;                                                                    \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define PWRITEV(symbol, offset)                                                         \
    ssize_t symbol(int fd, const struct iovec *parts, int count, offset place) {        \
        REAL(ssize_t, symbol, int, const struct iovec *, int, offset);                  \
        ssize_t done = real(fd, parts, count, place);                                   \
        written(fd, place, parts, count, done);                                         \
        return done;                                                                    \
    }
PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)

#define FTRUNCATE(symbol, offset)                                                       \
    int symbol(int fd, offset size) {                                                   \
        REAL(int, symbol, int, offset);                                                 \
        struct stat status;                                                             \
        int failed = real(fd, size);                                                    \
        if (!failed && file_of(fd, &status)) note(CUT, status.st_ino, size, 0, "", 0);  \
        return failed;                                                                  \
    }
FTRUNCATE(ftruncate, off_t)
FTRUNCATE(ftruncate64, off64_t)

static void allocated(int fd, int failed) {
    struct stat status;
    if (!failed && file_of(fd, &status)) note(CUT, status.st_ino, status.st_size, 0, "", 0);
}

#define FALLOCATE(symbol, offset)                                                       \
    int symbol(int fd, int mode, offset place, offset size) {                           \
        REAL(int, symbol, int, int, offset, offset);                                    \
        int failed = real(fd, mode, place, size);                                       \
        allocated(fd, failed);                                                          \
        return failed;                                                                  \
    }
FALLOCATE(fallocate, off_t)
FALLOCATE(fallocate64, off64_t)

#define POSIX_FALLOCATE(symbol, offset)                                                 \
    int symbol(int fd, offset place, offset size) {                                     \
        REAL(int, symbol, int, offset, offset);                                         \
        int failed = real(fd, place, size);                                             \
        allocated(fd, failed);                                                          \
        return failed;                                                                  \
    }
POSIX_FALLOCATE(posix_fallocate, off_t)
POSIX_FALLOCATE(posix_fallocate64, off64_t)

static int synced(int fd, int (*real)(int)) {
    struct stat status;
    if (unsynced && strcmp(unsynced, "*") == 0) return 0;
    struct file *file = file_of(fd, &status);
    if (file && file->unsynced) return 0;
    int is_folder = record >= 0 && !within && fstat(fd, &status) == 0
        && status.st_ino == folder_status.st_ino && status.st_dev == folder_status.st_dev;
    if (!file && !is_folder) return real(fd);
    int64_t number = ++numbers;
    note(SYNCING, status.st_ino, 0, number, "", 0);
    int failed = real(fd);
    if (!failed) note(SYNCED, status.st_ino, 0, number, "", 0);
    return failed;
}

int fsync(int fd) {
    REAL(int, fsync, int);
    return synced(fd, real);
}

int fdatasync(int fd) {
    REAL(int, fdatasync, int);
    return synced(fd, real);
}

static int port_of(const struct sockaddr_storage *address) {
    if (address->ss_family == AF_INET) return ntohs(((struct sockaddr_in *)address)->sin_port);
    if (address->ss_family == AF_INET6) return ntohs(((struct sockaddr_in6 *)address)->sin6_port);
    return 0;
}

/* The number of what is being sent; 0 if that is not recorded. */
static int64_t sending(int fd, const struct iovec *parts, int count) {
    struct sockaddr_storage peer;
    socklen_t size = sizeof peer;
    if (record < 0 || within || getpeername(fd, (struct sockaddr *)&peer, &size) != 0) return 0;
    int port = port_of(&peer);
    if (!port) return 0;
    int64_t number = ++numbers;
    within = 1;
    note_index();
    append(SENDING, 0, port, number, parts, count);
    within = 0;
    return number;
}

static ssize_t sent(int64_t number, ssize_t done, const struct iovec *parts, int count) {
    ssize_t size = 0;
    for (int i = 0; i < count; i++) size += parts[i].iov_len;
    if (number && done != size) note(SENT, 0, done < 0 ? 0 : done, number, "", 0);
    return done;
}

ssize_t send(int fd, const void *data, size_t size, int flags) {
    REAL(ssize_t, send, int, const void *, size_t, int);
    struct iovec part = {(void *)data, size};
    int64_t number = sending(fd, &part, 1);
    return sent(number, real(fd, data, size, flags), &part, 1);
}

ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to,
               socklen_t length) {
    REAL(ssize_t, sendto, int, const void *, size_t, int, const struct sockaddr *, socklen_t);
    struct iovec part = {(void *)data, size};
    int64_t number = sending(fd, &part, 1);
    return sent(number, real(fd, data, size, flags, to, length), &part, 1);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    REAL(ssize_t, sendmsg, int, const struct msghdr *, int);
    int64_t number = sending(fd, message->msg_iov, message->msg_iovlen);
    return sent(number, real(fd, message, flags), message->msg_iov, message->msg_iovlen);
}

/* Both files and sockets may be written to without saying where. */
static ssize_t streamed(int fd, const struct iovec *parts, int count) {
    struct stat status;
    if (file_of(fd, &status)) {
        off_t place = lseek(fd, 0, SEEK_CUR);
        int flags = fcntl(fd, F_GETFL);
        ssize_t done = real_writev(fd, parts, count);
        if (done > 0 && flags & O_APPEND) place = lseek(fd, 0, SEEK_CUR) - done;
        written(fd, place, parts, count, done);
        return done;
    }
    int64_t number = sending(fd, parts, count);
    return sent(number, real_writev(fd, parts, count), parts, count);
}

ssize_t write(int fd, const void *data, size_t size) {
    struct iovec part = {(void *)data, size};
    return streamed(fd, &part, 1);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    return streamed(fd, parts, count);
}
