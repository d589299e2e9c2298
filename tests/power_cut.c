/* Preloaded, it records what a process does to the files below $POWER_ROOT into $POWER_LOG.
 *
 * A record is op, inode, offset, length of a path, length of data, path, data; see power_cut.py. What
 * the disk keeps after a power cut follows from it. Calls that fail leave no record. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define MAX_FDS 65536
static char watched[MAX_FDS]; /* 1: a file, 2: a folder */

/* The absolute path, and whether it is below $POWER_ROOT. */
static int below(int at, const char *path, char *whole) {
    const char *root = getenv("POWER_ROOT");
    char folder[PATH_MAX] = "";
    if (!root || !path) return 0;
    if (path[0] != '/') {
        if (at == AT_FDCWD) {
            if (!getcwd(folder, sizeof folder)) return 0;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", at);
            ssize_t size = readlink(link, folder, sizeof folder - 1);
            if (size < 0) return 0;
            folder[size] = 0;
        }
    }
    if (snprintf(whole, PATH_MAX, "%s%s%s", folder, *folder ? "/" : "", path) >= PATH_MAX) return 0;
    size_t size = strlen(root);
    return strncmp(whole, root, size) == 0 && (whole[size] == '/' || !whole[size]);
}

static void record(char op, uint64_t inode, uint64_t offset, const char *path, const void *data,
                   size_t size) {
    int saved = errno;
    static int log = -1, owner = 0;
    if (owner != getpid()) {
        log = syscall(SYS_openat, AT_FDCWD, getenv("POWER_LOG"), O_WRONLY | O_APPEND | O_CREAT, 0644);
        owner = getpid();
    }
    struct { uint64_t op, inode, offset, path, data; } head = {op, inode, offset, strlen(path), size};
    struct iovec parts[] = {
        {&head, sizeof head}, {(void *)path, head.path}, {(void *)data, size}};
    syscall(SYS_writev, log, parts, 3);
    errno = saved;
}

static uint64_t inode_of(int fd) {
    struct stat found;
    return fstat(fd, &found) ? 0 : found.st_ino;
}

/* --- names --- */

static int was_there(int at, const char *path) {
    struct stat found;
    return fstatat(at, path, &found, AT_SYMLINK_NOFOLLOW) == 0;
}

static int watch(int fd, int existed, int flags, const char *path) {
    struct stat found;
    if (fd < 0 || fd >= MAX_FDS || fstat(fd, &found)) return fd;
    watched[fd] = S_ISDIR(found.st_mode) ? 2 : 1;
    if (watched[fd] == 1 && !existed) record('c', found.st_ino, 0, path, "", 0);
    if (watched[fd] == 1 && existed && flags & O_TRUNC) record('t', found.st_ino, 0, path, "", 0);
    return fd;
}

static int open_at(int at, const char *path, int flags, mode_t mode) {
    char whole[PATH_MAX];
    int inside = below(at, path, whole), existed = inside && was_there(at, path);
    int fd = syscall(SYS_openat, at, path, flags, mode);
    return inside ? watch(fd, existed, flags, whole) : fd;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) {
    MODE(flags) return open_at(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}
int openat(int at, const char *path, int flags, ...) { MODE(flags) return open_at(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) {
    MODE(flags) return open_at(at, path, flags | O_LARGEFILE, mode);
}

static FILE *open_stream(__typeof__(&fopen) real, const char *path, const char *mode) {
    char whole[PATH_MAX];
    int inside = below(AT_FDCWD, path, whole), existed = inside && was_there(AT_FDCWD, path);
    FILE *stream = real(path, mode);
    if (stream && inside) watch(fileno(stream), existed, *mode == 'w' ? O_TRUNC : 0, whole);
    return stream;
}

FILE *fopen(const char *path, const char *mode) { return open_stream(REAL(fopen), path, mode); }
FILE *fopen64(const char *path, const char *mode) { return open_stream(REAL(fopen64), path, mode); }

/* A child of vfork, which Python 3.10 makes and which closes all its files, has the parent's memory. */
static pid_t owner_of_memory;
static void own_memory(void) { owner_of_memory = getpid(); }
__attribute__((constructor)) static void start(void) {
    own_memory();
    pthread_atfork(NULL, NULL, own_memory); /* not called by vfork */
}

int close(int fd) {
    if (fd >= 0 && fd < MAX_FDS && getpid() == owner_of_memory) watched[fd] = 0;
    return REAL(close)(fd);
}

int fclose(FILE *stream) {
    int fd = fileno(stream);
    if (fd >= 0 && fd < MAX_FDS) watched[fd] = 0;
    return REAL(fclose)(stream);
}

/* A second path comes as data. */
static int name(char op, int result, int at, const char *path, int to_at, const char *to) {
    char whole[PATH_MAX], whole_to[PATH_MAX] = "";
    if (result == 0 && below(at, path, whole) && (!to || below(to_at, to, whole_to)))
        record(op, 0, 0, whole, whole_to, strlen(whole_to));
    return result;
}

int rename(const char *from, const char *to) {
    return name('r', REAL(rename)(from, to), AT_FDCWD, from, AT_FDCWD, to);
}
int renameat(int at, const char *from, int to_at, const char *to) {
    return name('r', REAL(renameat)(at, from, to_at, to), at, from, to_at, to);
}
int link(const char *from, const char *to) {
    return name('l', REAL(link)(from, to), AT_FDCWD, from, AT_FDCWD, to);
}
int linkat(int at, const char *from, int to_at, const char *to, int flags) {
    return name('l', REAL(linkat)(at, from, to_at, to, flags), at, from, to_at, to);
}
int unlink(const char *path) { return name('u', REAL(unlink)(path), AT_FDCWD, path, 0, NULL); }
int unlinkat(int at, const char *path, int flags) {
    return name('u', REAL(unlinkat)(at, path, flags), at, path, 0, NULL);
}
int rmdir(const char *path) { return name('u', REAL(rmdir)(path), AT_FDCWD, path, 0, NULL); }
int mkdir(const char *path, mode_t mode) {
    return name('m', REAL(mkdir)(path, mode), AT_FDCWD, path, 0, NULL);
}
int mkdirat(int at, const char *path, mode_t mode) {
    return name('m', REAL(mkdirat)(at, path, mode), at, path, 0, NULL);
}

/* --- contents --- */

static int is_file(int fd) { return fd >= 0 && fd < MAX_FDS && watched[fd] == 1; }

/* What was written last into the file, which ends at `end`. */
static void wrote(int fd, const void *data, ssize_t size, off_t end) {
    if (size > 0 && is_file(fd)) record('w', inode_of(fd), end - size, "", data, size);
}

ssize_t write(int fd, const void *data, size_t size) {
    ssize_t done = syscall(SYS_write, fd, data, size);
    wrote(fd, data, done, is_file(fd) ? lseek(fd, 0, SEEK_CUR) : 0);
    return done;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    ssize_t done = syscall(SYS_writev, fd, parts, count), left = done;
    off_t end = is_file(fd) ? lseek(fd, 0, SEEK_CUR) - done : 0;
    for (int i = 0; i < count && left > 0; i++) {
        ssize_t size = left < (ssize_t)parts[i].iov_len ? left : (ssize_t)parts[i].iov_len;
        wrote(fd, parts[i].iov_base, size, end += size);
        left -= size;
    }
    return done;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    ssize_t done = syscall(SYS_pwrite64, fd, data, size, offset);
    wrote(fd, data, done, offset + done);
    return done;
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    return pwrite64(fd, data, size, offset);
}

/* Copies within the kernel: by read and write instead. */
ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t size,
                        unsigned flags) {
    if (!is_file(to)) return REAL(copy_file_range)(from, from_at, to, to_at, size, flags);
    errno = EXDEV;
    return -1;
}
ssize_t sendfile64(int to, int from, off64_t *at, size_t size) {
    if (!is_file(to)) return REAL(sendfile64)(to, from, at, size);
    errno = ENOTSOCK; /* Python's shutil then reads and writes */
    return -1;
}
ssize_t sendfile(int to, int from, off_t *at, size_t size) { return sendfile64(to, from, at, size); }

int ftruncate64(int fd, off64_t size) {
    int result = syscall(SYS_ftruncate, fd, size);
    if (result == 0 && is_file(fd)) record('t', inode_of(fd), size, "", "", 0);
    return result;
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

static int flushed(int fd, int result) {
    char link[64], path[PATH_MAX] = "";
    if (result || fd < 0 || fd >= MAX_FDS || !watched[fd]) return result;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (watched[fd] == 2 && readlink(link, path, sizeof path - 1) < 0) return result;
    record(watched[fd] == 2 ? 'd' : 's', inode_of(fd), 0, path, "", 0);
    return result;
}

int fsync(int fd) { return flushed(fd, syscall(SYS_fsync, fd)); }
int fdatasync(int fd) { return flushed(fd, syscall(SYS_fdatasync, fd)); }
