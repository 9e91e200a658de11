/* The first part of dist/taskd: it unpacks what stands behind it, once, and becomes it.
 *
 *     [this program][deflated files][index][trailer]          made by bundle.py
 *
 *     FOLDER/<digest>/     the files; FOLDER is the first that will do of `candidates`
 *     FOLDER/lock          held while something is unpacked or removed
 *     FOLDER/new-…, old-…  half done, or half removed: whoever has the lock removes them
 *
 * A folder gets its name once it is whole and on disk, so that a kill at any moment leaves
 * nothing that would be taken for whole. Each process holds a lock on the folder that it
 * runs from; folders of other versions that nobody holds are removed.
 *
 * Signals that an operator may send wait, blocked, until Python can hear them: see
 * taskd/runtime/signals.py.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "inflate.h"

#define MAGIC "taskd-bundle-1\n"
#define PROGRAM "taskd"
#define DIGEST 32
#define LOCK_PATIENCE_MS 60000
#define GLANCE_MS 20
#define ABOVE_THE_STANDARD_STREAMS 10

/* How bundle.py writes them: little-endian, without gaps. */
struct entry {
    uint64_t offset;
    uint32_t packed, size, crc, mode, name, reserved;
} __attribute__((packed));

struct trailer {
    char magic[16];
    uint64_t index, names, end;
    uint32_t count, crc;
    char digest[DIGEST];
} __attribute__((packed));

struct bundle {
    const uint8_t *bytes;
    const struct entry *entries;
    const char *names;
    uint32_t count;
    char digest[DIGEST + 1];
};

static char reasons[8192];

/* Note why a folder will not do. */
static void note(const char *folder, const char *why)
{
    size_t used = strlen(reasons);
    snprintf(reasons + used, sizeof reasons - used, "%s%s: %s", used ? "; " : "", folder, why);
}

/* End, with one line: of the log's form where that is JSON. */
static void fail(const char *format, ...)
{
    char text[sizeof reasons + 512], line[2 * sizeof text];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    const char *style = getenv("TASKD_LOG_FORMAT");
    if (style == NULL || strcmp(style, "json") != 0) {
        dprintf(STDERR_FILENO, "Error: %s\n", text);
        _exit(1);
    }
    size_t used = 0;
    for (const char *at = text; *at != 0 && used < sizeof line - 2; at++) {
        if (*at == '"' || *at == '\\')
            line[used++] = '\\';
        line[used++] = (unsigned char)*at < ' ' ? '?' : *at;
    }
    line[used] = 0;
    char moment[32];
    time_t now = time(NULL);
    strftime(moment, sizeof moment, "%Y-%m-%dT%H:%M:%S.000Z", gmtime(&now));
    dprintf(STDERR_FILENO,
            "{\"time\": \"%s\", \"level\": \"error\", \"logger\": \"taskd.launcher\", "
            "\"message\": \"taskd can't be unpacked\", \"reason\": \"%s\"}\n",
            moment, line);
    _exit(1);
}

static uint32_t crc_of(const uint8_t *bytes, size_t length)
{
    static uint32_t table[256];
    if (table[1] == 0)
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t rest = byte;
            for (int bit = 0; bit < 8; bit++)
                rest = rest >> 1 ^ (rest & 1 ? 0xedb88320u : 0);
            table[byte] = rest;
        }
    uint32_t crc = ~0u;
    for (size_t at = 0; at < length; at++)
        crc = table[(crc ^ bytes[at]) & 255] ^ crc >> 8;
    return ~crc;
}

static struct bundle opened(void)
{
    struct bundle bundle;
    struct stat status;
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0)
        fail("this program can't read itself (/proc/self/exe): %s", strerror(errno));
    size_t size = (size_t)status.st_size;
    bundle.bytes = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (bundle.bytes == MAP_FAILED)
        fail("this program can't read itself: %s", strerror(errno));
    close(fd);
    struct trailer trailer;
    if (size < sizeof trailer)
        fail("this program is cut short: copy it again");
    memcpy(&trailer, bundle.bytes + size - sizeof trailer, sizeof trailer);
    if (memcmp(trailer.magic, MAGIC, sizeof trailer.magic) != 0 ||
        trailer.end != size - sizeof trailer || trailer.index > trailer.names ||
        trailer.names > trailer.end ||
        (trailer.names - trailer.index) / sizeof(struct entry) < trailer.count ||
        crc_of(bundle.bytes + trailer.index, trailer.end - trailer.index) != trailer.crc)
        fail("this program is cut short, or was changed: copy it again");
    bundle.entries = (const struct entry *)(bundle.bytes + trailer.index);
    bundle.names = (const char *)(bundle.bytes + trailer.names);
    bundle.count = trailer.count;
    memcpy(bundle.digest, trailer.digest, DIGEST);
    bundle.digest[DIGEST] = 0;
    return bundle;
}

/* Remove a file, or a folder with all that is in it. */
static void removed(int at, const char *name)
{
    if (unlinkat(at, name, 0) == 0 || (errno != EISDIR && errno != EPERM))
        return;
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    if (folder == NULL)
        return;
    struct dirent *entry;
    while ((entry = readdir(folder)) != NULL)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            removed(fd, entry->d_name);
    closedir(folder);
    unlinkat(at, name, AT_REMOVEDIR);
}

/* Whether a folder has all files of the bundle, each with its size. */
static int whole(const struct bundle *bundle, int folder)
{
    for (uint32_t number = 0; number < bundle->count; number++) {
        const struct entry *entry = &bundle->entries[number];
        struct stat status;
        if (fstatat(folder, bundle->names + entry->name, &status, AT_SYMLINK_NOFOLLOW) < 0 ||
            (status.st_mode & S_IFMT) != (entry->mode & S_IFMT) ||
            (!S_ISDIR(status.st_mode) && (uint32_t)status.st_size != entry->size) ||
            (S_ISREG(status.st_mode) && (status.st_mode & 0100) != (entry->mode & 0100)))
            return 0;
    }
    return 1;
}

/* Open the bundle's folder if it is whole, and hold it; -1 if it is not. */
static int held(const struct bundle *bundle, int base)
{
    int fd = openat(base, bundle->digest, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -1;
    struct stat opened_one, named_one;
    /* A file system without locks has none to be removed by, either. */
    if ((flock(fd, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK) ||
        fstat(fd, &opened_one) < 0 ||
        fstatat(base, bundle->digest, &named_one, AT_SYMLINK_NOFOLLOW) < 0 ||
        opened_one.st_ino != named_one.st_ino || !whole(bundle, fd)) {
        close(fd);
        return -1;
    }
    return fd;
}

static int written(int at, const char *name, mode_t mode, const uint8_t *bytes, size_t length)
{
    int fd = openat(at, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode & 0777);
    if (fd < 0)
        return -1;
    while (length > 0) {
        ssize_t done = write(fd, bytes, length);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0) {
            int why = errno;
            close(fd);
            errno = why;
            return -1;
        }
        bytes += done, length -= (size_t)done;
    }
    /* Whatever the umask is. */
    if (fchmod(fd, mode & 0777) < 0) {
        close(fd);
        return -1;
    }
    return close(fd);
}

static int unpacked_entry(const struct bundle *bundle, const struct entry *entry, int folder)
{
    const char *name = bundle->names + entry->name;
    if (S_ISDIR(entry->mode))
        return mkdirat(folder, name, 0700);
    uint8_t *bytes = malloc((size_t)entry->size + 1);
    if (bytes == NULL)
        return -1;
    if (inflate_all(bundle->bytes + entry->offset, entry->packed, bytes, entry->size) < 0 ||
        crc_of(bytes, entry->size) != entry->crc) {
        free(bytes);
        errno = EBADMSG; /* told by whoever removes the rest */
        return -1;
    }
    bytes[entry->size] = 0;
    int result = S_ISLNK(entry->mode)
                     ? symlinkat((const char *)bytes, folder, name)
                     : written(folder, name, entry->mode, bytes, entry->size);
    int why = errno;
    free(bytes);
    errno = why;
    return result;
}

/* Unpack the bundle under its name; -1 where that can't be done. */
static int unpacked(const struct bundle *bundle, int base)
{
    char fresh[64], former[64];
    snprintf(fresh, sizeof fresh, "new-%d-%ld", getpid(), (long)time(NULL));
    snprintf(former, sizeof former, "old-%d-%ld", getpid(), (long)time(NULL));
    removed(base, fresh);
    if (mkdirat(base, fresh, 0700) < 0)
        return -1;
    int folder = openat(base, fresh, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int result = folder < 0 ? -1 : 0;
    for (uint32_t number = 0; result == 0 && number < bundle->count; number++)
        result = unpacked_entry(bundle, &bundle->entries[number], folder);
    /* On disk before it has its name: after a power cut it would pass for whole. */
    if (result == 0)
        result = syncfs(folder);
    if (result == 0 && (result = renameat(base, fresh, base, bundle->digest)) < 0) {
        /* One that is there: another's by now, or broken. */
        int there = held(bundle, base);
        if (there >= 0) {
            close(there);
            result = 0;
        } else if (renameat(base, bundle->digest, base, former) == 0) {
            result = renameat(base, fresh, base, bundle->digest);
        }
    }
    int why = errno;
    if (folder >= 0)
        close(folder);
    removed(base, former);
    removed(base, fresh);
    errno = why;
    return result;
}

static int is_digest(const char *name)
{
    return strlen(name) == DIGEST && strspn(name, "0123456789abcdef") == DIGEST;
}

/* Remove what kills and other versions have left, while nobody else does. */
static void tidied(const struct bundle *bundle, int base)
{
    int fd = openat(base, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = fd < 0 ? NULL : fdopendir(fd);
    if (folder == NULL)
        return;
    struct dirent *entry;
    while ((entry = readdir(folder)) != NULL) {
        const char *name = entry->d_name;
        if (strncmp(name, "new-", 4) == 0 || strncmp(name, "old-", 4) == 0) {
            removed(base, name);
        } else if (is_digest(name) && strcmp(name, bundle->digest) != 0) {
            int other = openat(base, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            char former[64];
            snprintf(former, sizeof former, "old-%.32s", name);
            if (other >= 0 && flock(other, LOCK_EX | LOCK_NB) == 0 &&
                renameat(base, name, base, former) == 0)
                removed(base, former);
            if (other >= 0)
                close(other);
        }
    }
    closedir(folder);
}

/* Take the lock of the folder; -1 where that can't be done in time. */
static int locked(int base)
{
    int lock = openat(base, "lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    for (int waited = 0; lock >= 0 && flock(lock, LOCK_EX | LOCK_NB) < 0;) {
        if (errno != EWOULDBLOCK || (waited += GLANCE_MS) > LOCK_PATIENCE_MS) {
            close(lock);
            return -1;
        }
        usleep(GLANCE_MS * 1000);
    }
    return lock;
}

/* The bundle's folder, open and held, unpacked where it is not; -1 where it can't be. */
static int provided(const struct bundle *bundle, const char *path, int base)
{
    int folder = held(bundle, base);
    if (folder >= 0)
        return folder;
    int lock = locked(base);
    folder = lock < 0 ? -1 : held(bundle, base);
    if (folder < 0) {
        if (lock >= 0)
            tidied(bundle, base);
        if (unpacked(bundle, base) == 0) {
            if ((folder = held(bundle, base)) < 0)
                note(path, "what was unpacked there is gone");
        } else if (errno == EBADMSG) {
            fail("this program was changed: copy it again");
        } else {
            note(path, strerror(errno));
        }
    }
    if (lock >= 0)
        close(lock);
    return folder;
}

static int makes_folders(char *path)
{
    for (char *at = path + 1; *at != 0; at++)
        if (*at == '/') {
            *at = 0;
            int made = mkdir(path, 0700);
            *at = '/';
            if (made < 0 && errno != EEXIST && errno != EROFS && errno != EACCES)
                return -1;
        }
    return mkdir(path, 0700) < 0 && errno != EEXIST ? -1 : 0;
}

/* Open a folder to unpack into, made where missing, if nobody else may write to it. */
static int usable(char *path, int with_parents)
{
    struct stat status;
    struct statvfs system;
    if ((with_parents ? makes_folders(path) : mkdir(path, 0700)) < 0 && errno != EEXIST) {
        note(path, strerror(errno));
        return -1;
    }
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0 || fstatvfs(fd, &system) < 0) {
        note(path, strerror(errno));
    } else if (status.st_uid != geteuid()) {
        note(path, "it belongs to somebody else");
    } else if (status.st_mode & 022) {
        note(path, "others may write to it");
    } else if (system.f_flag & ST_NOEXEC) {
        note(path, "it is mounted noexec");
    } else {
        char *slash = strrchr(path, '/');
        *slash = 0;
        int known = stat(slash == path ? "/" : path, &status);
        *slash = '/';
        if (known == 0 && (status.st_uid == 0 || status.st_uid == geteuid()) &&
            (!(status.st_mode & 022) || status.st_mode & S_ISVTX))
            return fd;
        note(path, "others may replace it");
    }
    if (fd >= 0)
        close(fd);
    return -1;
}

/* Become the program in a folder; returns where that can't be done. */
static void become(const struct bundle *bundle, const char *path, int folder, char **arguments)
{
    char program[4096 + DIGEST + 16];
    snprintf(program, sizeof program, "%s/%s/%s", path, bundle->digest, PROGRAM);
    /* The lock lasts as long as a process has this open. */
    int kept = fcntl(folder, F_DUPFD, ABOVE_THE_STANDARD_STREAMS);
    close(folder);
    execv(program, arguments);
    note(path, strerror(errno));
    close(kept);
}

static void tried(const struct bundle *bundle, char **arguments, int with_parents,
                  const char *format, ...)
{
    char path[4096];
    va_list values;
    va_start(values, format);
    int length = vsnprintf(path, sizeof path, format, values);
    va_end(values);
    if (length >= (int)sizeof path || path[0] != '/')
        return;
    while (length > 1 && path[length - 1] == '/')
        path[--length] = 0;
    int base = usable(path, with_parents);
    if (base < 0)
        return;
    int folder = provided(bundle, path, base);
    close(base);
    if (folder >= 0)
        become(bundle, path, folder, arguments);
}

/* A folder that a variable names, unless it is another user's, as HOME is after sudo. */
static const char *own(const char *variable, int may_be_missing)
{
    const char *path = getenv(variable);
    struct stat status;
    if (path == NULL || path[0] != '/')
        return NULL;
    if (stat(path, &status) < 0)
        return may_be_missing && errno == ENOENT ? path : NULL;
    return status.st_uid == geteuid() ? path : NULL;
}

int main(int count, char **arguments)
{
    (void)count;
    sigset_t orders;
    sigemptyset(&orders);
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGQUIT};
    for (size_t number = 0; number < sizeof numbers / sizeof *numbers; number++)
        sigaddset(&orders, numbers[number]);
    sigprocmask(SIG_BLOCK, &orders, NULL);

    struct bundle bundle = opened();
    const char *named = getenv("TASKD_CACHE"), *folder;
    if (named != NULL && *named != 0) {
        if (named[0] != '/')
            fail("TASKD_CACHE: must be an absolute path, got %s", named);
        tried(&bundle, arguments, 1, "%s", named);
        fail("taskd can't unpack itself where TASKD_CACHE says: %s", reasons);
    }
    if ((folder = own("CACHE_DIRECTORY", 0)) != NULL)
        tried(&bundle, arguments, 1, "%s/taskd", folder);
    if ((folder = own("XDG_CACHE_HOME", 1)) != NULL)
        tried(&bundle, arguments, 1, "%s/taskd", folder);
    if ((folder = own("HOME", 0)) != NULL)
        tried(&bundle, arguments, 1, "%s/.cache/taskd", folder);
    if (geteuid() == 0)
        tried(&bundle, arguments, 0, "/var/cache/taskd");
    tried(&bundle, arguments, 0, "/var/tmp/taskd-%u", (unsigned)geteuid());
    if ((folder = getenv("TMPDIR")) != NULL && *folder != 0)
        tried(&bundle, arguments, 0, "%s/taskd-%u", folder, (unsigned)geteuid());
    tried(&bundle, arguments, 0, "/tmp/taskd-%u", (unsigned)geteuid());
    fail("taskd can't unpack itself (%s); set TASKD_CACHE to a folder of this user's that can be "
         "written to and is not mounted noexec",
         reasons);
}
