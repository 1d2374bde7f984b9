/* A file system that fails: preloaded, it counts the calls that write (or read) below a folder, and fails the n-th.
 *
 * LD_PRELOAD=shim.so; armed from Python through ctypes. It sits below libc, so that libsndfile, the Rust of
 * safetensors and Python meet the same fault. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[4096];
static long calls, target; /* so many calls so far; the one that fails, 0 for none */
static int number, lasting, reading;

void fault_arm(const char *below, long nth, int error, int stays, int reads) {
    strncpy(folder, below, sizeof folder - 1);
    calls = 0, target = nth, number = error, lasting = stays, reading = reads;
}

long fault_calls(void) { return calls; }

static int is_below(const char *path) { return folder[0] && !strncmp(path, folder, strlen(folder)); }

/* Whether this call fails; errno is set then. */
static int fails(const char *path, int reads) {
    if (reads != reading || !is_below(path)) return 0;
    calls++;
    if (!target || calls < target || (calls > target && !lasting)) return 0;
    errno = number;
    return 1;
}

static int fails_at(int directory, const char *path, int reads) {
    char whole[8192], base[4096], link[64];
    if (!folder[0] || path == NULL) return 0;
    if (path[0] == '/') return fails(path, reads);
    if (directory == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        ssize_t size = readlink(link, base, sizeof base - 1);
        if (size < 0) return 0;
        base[size] = 0;
    }
    snprintf(whole, sizeof whole, "%s/%s", base, path);
    return fails(whole, reads);
}

static int fails_fd(int fd, int reads) {
    char link[64], path[4096];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return fails(path, reads);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FD(name, reads, types, arguments) \
    ssize_t name types { return fails_fd(fd, reads) ? -1 : NEXT(name) arguments; }
FD(write, 0, (int fd, const void *data, size_t size), (fd, data, size))
FD(pwrite, 0, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
FD(pwrite64, 0, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
FD(writev, 0, (int fd, const struct iovec *parts, int count), (fd, parts, count))
FD(read, 1, (int fd, void *data, size_t size), (fd, data, size))
FD(pread, 1, (int fd, void *data, size_t size, off_t at), (fd, data, size, at))
FD(pread64, 1, (int fd, void *data, size_t size, off64_t at), (fd, data, size, at))

int fsync(int fd) { return fails_fd(fd, 0) ? -1 : NEXT(fsync)(fd); }
int fdatasync(int fd) { return fails_fd(fd, 0) ? -1 : NEXT(fdatasync)(fd); }
int mkdir(const char *path, mode_t mode) { return fails_at(AT_FDCWD, path, 0) ? -1 : NEXT(mkdir)(path, mode); }
int rename(const char *old, const char *new) { return fails_at(AT_FDCWD, new, 0) ? -1 : NEXT(rename)(old, new); }
int link(const char *old, const char *new) { return fails_at(AT_FDCWD, new, 0) ? -1 : NEXT(link)(old, new); }
int renameat(int from, const char *old, int to, const char *new) {
    return fails_at(to, new, 0) ? -1 : NEXT(renameat)(from, old, to, new);
}
int linkat(int from, const char *old, int to, const char *new, int flags) {
    return fails_at(to, new, 0) ? -1 : NEXT(linkat)(from, old, to, new, flags);
}

#define OPEN(name, before, at, call) \
    int name before { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        return fails_at(at, path, !(flags & (O_WRONLY | O_RDWR | O_CREAT))) ? -1 : NEXT(name) call; \
    }
OPEN(open, (const char *path, int flags, ...), AT_FDCWD, (path, flags, mode))
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, (path, flags, mode))
OPEN(openat, (int at, const char *path, int flags, ...), at, (at, path, flags, mode))
OPEN(openat64, (int at, const char *path, int flags, ...), at, (at, path, flags, mode))
