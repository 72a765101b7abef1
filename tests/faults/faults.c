/* What stands between a process and its disk, loaded with LD_PRELOAD: numbers every operation that changes something
 * below one folder, writes each with its data into a journal elsewhere, and at a chosen number ends the process or lets
 * operations fail. Read by tests/faults/replay.py, built and set up by tests/faults/shim.py. Settings are environment
 * variables (FAULTS_ROOT, _LOG, _MODE, _AT, _ONCE, _WHILE), read once; children of the process run without it.
 *
 * One lock is held over number, operation and journal, so the journal's order is the disk's. Shared mappings are not
 * seen: SQLite's -shm file, which is rebuilt after every crash, is left out altogether; nothing else is mapped for
 * writing. A socket's name made by bind() is not seen either, and a path may not lead out of the folder and back.
 */
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum kind { CREATE = 1, WRITE, TRUNCATE, SYNC, RENAME, LINK, UNLINK, RMDIR, MKDIR, SYMLINK, MODE, TIMES, ALLOCATE };
enum mode { COUNT, KILL_BEFORE, KILL_AFTER, FULL, READ_ONLY, BROKEN, SHORT };

struct record { /* little-endian; followed by path, other and data */
    uint32_t magic, number;
    uint16_t kind, created;
    uint32_t mode;
    uint64_t inode;
    int64_t at, result;
    uint32_t path_size, other_size, data_size;
} __attribute__((packed));

struct op {
    enum kind kind;
    char path[PATH_MAX], other[PATH_MAX];
    int created;
    uint32_t mode;
    uint64_t inode;
    off_t at;
    const void *data;
    size_t size;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX], while_there[PATH_MAX];
static size_t root_size;
static int journal = -1, once;
static enum mode mode;
static long at_number, number;
static pid_t owner;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static enum mode mode_named(const char *name) {
    static const char *names[] = {"count", "kill-before", "kill-after", "full", "read-only", "broken", "short"};
    for (size_t i = 0; name && i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i])) return (enum mode)i;
    return COUNT;
}

__attribute__((constructor)) static void start(void) {
    const char *value = getenv("FAULTS_ROOT"), *log = getenv("FAULTS_LOG");
    if (!value || !*value) return;
    snprintf(root, sizeof root, "%s", value);
    root_size = strlen(root);
    mode = mode_named(getenv("FAULTS_MODE"));
    at_number = (value = getenv("FAULTS_AT")) ? atol(value) : 0;
    once = (value = getenv("FAULTS_ONCE")) && *value == '1';
    if ((value = getenv("FAULTS_WHILE"))) snprintf(while_there, sizeof while_there, "%s", value);
    if (log) journal = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    owner = getpid();
    unsetenv("LD_PRELOAD");
}

/* ---- what is watched ------------------------------------------------------------------------------------------ */

static int inside(const char *path) {
    size_t size = strlen(path);
    if (!owner || owner != getpid() || strncmp(path, root, root_size)) return 0;
    if (path[root_size] != '/' && path[root_size]) return 0;
    return !(size > 4 && !strcmp(path + size - 4, "-shm"));
}

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    path[size < 0 ? 0 : size] = 0;
    return size > 0;
}

static int resolve(int folder, const char *name, char *path) {
    int kept = errno, size = 0;
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
    } else {
        if (folder == AT_FDCWD ? !getcwd(path, PATH_MAX) : !path_of(folder, path)) path[0] = 0;
        size = (int)strlen(path);
        snprintf(path + size, PATH_MAX - size, "/%s", name);
    }
    errno = kept;
    return inside(path);
}

/* Whether the file behind `fd` is watched; then its name, inode and present size. */
static int behind(int fd, struct op *op, struct stat *status) {
    int kept = errno, found = owner && path_of(fd, op->path) && inside(op->path) && !fstat(fd, status);
    if (found) op->inode = status->st_ino;
    errno = kept;
    return found && (S_ISREG(status->st_mode) || S_ISDIR(status->st_mode));
}

/* ---- one operation -------------------------------------------------------------------------------------------- */

static int in_force(void) { return number >= at_number && (!*while_there || !access(while_there, F_OK)); }

static int hits(void) { return at_number && (once ? number == at_number : in_force()); }

static void end_process(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* The error that this kind of operation meets now, or 0. A full disk has no blocks left; what only takes a name in a
 * folder that has room for it, as an empty file does, goes on. */
static int failure(enum kind kind) {
    if (!hits()) return 0;
    if (mode == FULL) return kind == WRITE || kind == MKDIR || kind == ALLOCATE ? ENOSPC : 0;
    if (mode == READ_ONLY) return EROFS;
    return mode == BROKEN ? EIO : 0;
}

static void leave(const struct op *op, ssize_t result) {
    int kept = errno;
    size_t size = result < 0 || !op->data ? 0 : op->kind == WRITE ? (size_t)result : op->size;
    struct record record = {
        0x544c4146, (uint32_t)number, (uint16_t)op->kind, (uint16_t)op->created, op->mode, op->inode, op->at, result,
        (uint32_t)strlen(op->path), (uint32_t)strlen(op->other), (uint32_t)size,
    };
    struct iovec parts[4] = {
        {&record, sizeof record}, {(void *)op->path, record.path_size}, {(void *)op->other, record.other_size},
        {(void *)op->data, size},
    };
    if (journal >= 0 && syscall(SYS_writev, journal, parts, 4) < 0) abort(); /* a gap would be a lie */
    if (mode == KILL_AFTER && number == at_number) end_process();
    pthread_mutex_unlock(&lock);
    errno = kept;
}

/* Takes the lock and a number. Non-zero: the operation is refused, errno says why, and the lock is given back. */
static int enter(struct op *op) {
    pthread_mutex_lock(&lock);
    number++;
    if (mode == KILL_BEFORE && number == at_number) end_process();
    int error = failure(op->kind);
    if (!error) return 0;
    errno = error;
    leave(op, -error);
    return 1;
}

#define DO(op, call) do { \
    if (enter(op)) return -1; \
    __typeof__(call) result_ = (call); \
    leave((op), (ssize_t)result_); \
    return result_; \
} while (0)

/* ---- names ---------------------------------------------------------------------------------------------------- */

static int do_open(int folder, const char *name, int flags, mode_t bits) {
    struct op op = {.kind = CREATE, .mode = bits};
    struct stat status;
    int writes = (flags & O_ACCMODE) != O_RDONLY;
    if (!(writes || flags & O_CREAT) || !resolve(folder, name, op.path))
        return (int)syscall(SYS_openat, folder, name, flags, bits);
    int kept = errno, there = !lstat(op.path, &status);
    errno = kept;
    op.created = !there && flags & O_CREAT;
    if (!op.created && flags & O_TRUNC && there && status.st_size) op.kind = TRUNCATE;
    else if (!op.created) {
        if (mode == READ_ONLY && hits()) return errno = EROFS, -1;
        return (int)syscall(SYS_openat, folder, name, flags, bits);
    }
    if (enter(&op)) return -1;
    int fd = (int)syscall(SYS_openat, folder, name, flags, bits);
    if (fd >= 0 && !fstat(fd, &status)) op.inode = status.st_ino, op.mode = status.st_mode & 07777;
    leave(&op, fd < 0 ? -1 : 0);
    return fd;
}

static mode_t bits_of(int flags, va_list rest) {
    return flags & (O_CREAT | __O_TMPFILE) ? (mode_t)va_arg(rest, unsigned) : 0;
}

#define OPEN(name) int name(const char *path, int flags, ...) { \
    va_list rest; va_start(rest, flags); mode_t bits = bits_of(flags, rest); va_end(rest); \
    return do_open(AT_FDCWD, path, flags, bits); }
#define OPENAT(name) int name(int folder, const char *path, int flags, ...) { \
    va_list rest; va_start(rest, flags); mode_t bits = bits_of(flags, rest); va_end(rest); \
    return do_open(folder, path, flags, bits); }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)
int __open_2(const char *path, int flags) { return do_open(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return do_open(AT_FDCWD, path, flags, 0); }
int creat(const char *path, mode_t bits) { return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, bits); }

static int do_rename(int from, const char *name, int to, const char *other, unsigned flags) {
    struct op op = {.kind = RENAME};
    int source = resolve(from, name, op.path), target = resolve(to, other, op.other);
    if (!source && !target) return (int)syscall(SYS_renameat2, from, name, to, other, flags);
    DO(&op, (int)syscall(SYS_renameat2, from, name, to, other, flags));
}
int rename(const char *name, const char *other) { return do_rename(AT_FDCWD, name, AT_FDCWD, other, 0); }
int renameat(int from, const char *name, int to, const char *other) { return do_rename(from, name, to, other, 0); }
int renameat2(int from, const char *name, int to, const char *other, unsigned flags) {
    return do_rename(from, name, to, other, flags);
}

int linkat(int from, const char *name, int to, const char *other, int flags) {
    struct op op = {.kind = LINK};
    resolve(from, name, op.path);
    if (!resolve(to, other, op.other)) return (int)syscall(SYS_linkat, from, name, to, other, flags);
    DO(&op, (int)syscall(SYS_linkat, from, name, to, other, flags));
}
int link(const char *name, const char *other) { return linkat(AT_FDCWD, name, AT_FDCWD, other, 0); }

int symlinkat(const char *target, int folder, const char *name) {
    struct op op = {.kind = SYMLINK, .data = target, .size = strlen(target)};
    if (!resolve(folder, name, op.path)) return (int)syscall(SYS_symlinkat, target, folder, name);
    DO(&op, (int)syscall(SYS_symlinkat, target, folder, name));
}
int symlink(const char *target, const char *name) { return symlinkat(target, AT_FDCWD, name); }

int unlinkat(int folder, const char *name, int flags) {
    struct op op = {.kind = flags & AT_REMOVEDIR ? RMDIR : UNLINK};
    if (!resolve(folder, name, op.path)) return (int)syscall(SYS_unlinkat, folder, name, flags);
    DO(&op, (int)syscall(SYS_unlinkat, folder, name, flags));
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int mkdirat(int folder, const char *name, mode_t bits) {
    struct op op = {.kind = MKDIR, .mode = bits};
    struct stat status; /* what is there already is said before a disk is found full or read-only */
    if (!resolve(folder, name, op.path) || !lstat(op.path, &status)) return (int)syscall(SYS_mkdirat, folder, name, bits);
    DO(&op, (int)syscall(SYS_mkdirat, folder, name, bits));
}
int mkdir(const char *name, mode_t bits) { return mkdirat(AT_FDCWD, name, bits); }

int fchmodat(int folder, const char *name, mode_t bits, int flags) {
    struct op op = {.kind = MODE, .mode = bits};
    if (!resolve(folder, name, op.path)) return REAL(fchmodat)(folder, name, bits, flags);
    DO(&op, REAL(fchmodat)(folder, name, bits, flags));
}
int chmod(const char *name, mode_t bits) { return fchmodat(AT_FDCWD, name, bits, 0); }

int utimensat(int folder, const char *name, const struct timespec times[2], int flags) {
    struct op op = {.kind = TIMES};
    if (!resolve(folder, name, op.path)) return (int)syscall(SYS_utimensat, folder, name, times, flags);
    DO(&op, (int)syscall(SYS_utimensat, folder, name, times, flags));
}

/* ---- open files ----------------------------------------------------------------------------------------------- */

static size_t cut_short(size_t size) { return mode == SHORT && hits() && size > 1 ? size / 2 : size; }

static ssize_t do_write(int fd, const void *data, size_t size, off_t at, int positioned) {
    struct op op = {.kind = WRITE, .data = data, .at = at};
    struct stat status;
    if (!behind(fd, &op, &status))
        return positioned ? syscall(SYS_pwrite64, fd, data, size, at) : syscall(SYS_write, fd, data, size);
    if (enter(&op)) return -1;
    size = cut_short(size);
    if (!positioned && fcntl(fd, F_GETFL) & O_APPEND) fstat(fd, &status), op.at = status.st_size;
    else if (!positioned) op.at = lseek(fd, 0, SEEK_CUR);
    ssize_t done = positioned ? syscall(SYS_pwrite64, fd, data, size, at) : syscall(SYS_write, fd, data, size);
    leave(&op, done);
    return done;
}
ssize_t write(int fd, const void *data, size_t size) { return do_write(fd, data, size, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return do_write(fd, data, size, at, 1); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return do_write(fd, data, size, at, 1); }

static ssize_t do_writev(int fd, const struct iovec *parts, int count, off_t at, int positioned) {
    struct op op = {0};
    struct stat status;
    if (!behind(fd, &op, &status))
        return positioned ? REAL(pwritev)(fd, parts, count, at) : REAL(writev)(fd, parts, count);
    size_t size = 0, done = 0;
    for (int i = 0; i < count; i++) size += parts[i].iov_len;
    char *whole = malloc(size + 1);
    if (!whole) return errno = ENOMEM, -1;
    for (int i = 0; i < count; done += parts[i++].iov_len) memcpy(whole + done, parts[i].iov_base, parts[i].iov_len);
    ssize_t result = do_write(fd, whole, size, at, positioned);
    free(whole);
    return result;
}
ssize_t writev(int fd, const struct iovec *parts, int count) { return do_writev(fd, parts, count, 0, 0); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { return do_writev(fd, parts, count, at, 1); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) {
    return do_writev(fd, parts, count, at, 1);
}

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t at, int flags) {
    (void)flags;
    return do_writev(fd, parts, count, at, at >= 0);
}
ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t at, int flags) {
    return pwritev2(fd, parts, count, at, flags);
}

/* Copies inside the kernel become reads and one write, so that the data is known. */
static ssize_t copied(int from, off_t *offset, int to, off_t *target, size_t size) {
    size_t most = size < 1 << 20 ? size : 1 << 20;
    char *data = malloc(most + 1);
    if (!data) return errno = ENOMEM, -1;
    ssize_t got = offset ? pread(from, data, most, *offset) : read(from, data, most);
    ssize_t done = got <= 0 ? got : do_write(to, data, (size_t)got, target ? *target : 0, target != NULL);
    if (done > 0 && offset) *offset += done;
    if (done > 0 && target) *target += done;
    if (!offset && got > 0 && done < got) lseek(from, (done < 0 ? 0 : done) - got, SEEK_CUR);
    free(data);
    return done;
}
ssize_t sendfile(int to, int from, off_t *offset, size_t size) {
    struct op op;
    struct stat status;
    return behind(to, &op, &status) ? copied(from, offset, to, NULL, size) : syscall(SYS_sendfile, to, from, offset, size);
}
ssize_t sendfile64(int to, int from, off64_t *offset, size_t size) { return sendfile(to, from, offset, size); }
ssize_t copy_file_range(int from, off64_t *offset, int to, off64_t *target, size_t size, unsigned flags) {
    struct op op;
    struct stat status;
    if (behind(to, &op, &status)) return copied(from, offset, to, target, size);
    return syscall(SYS_copy_file_range, from, offset, to, target, size, flags);
}

int ftruncate(int fd, off_t size) {
    struct op op = {.kind = TRUNCATE, .at = size};
    struct stat status;
    if (!behind(fd, &op, &status)) return (int)syscall(SYS_ftruncate, fd, size);
    DO(&op, (int)syscall(SYS_ftruncate, fd, size));
}
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

int truncate(const char *path, off_t size) {
    int fd = open(path, O_WRONLY | O_CLOEXEC), result = fd < 0 ? -1 : ftruncate(fd, size), kept = errno;
    if (fd >= 0) close(fd);
    errno = kept;
    return result;
}
int truncate64(const char *path, off64_t size) { return truncate(path, size); }

int fallocate(int fd, int how, off_t at, off_t size) {
    struct op op = {.kind = ALLOCATE, .at = at + size};
    struct stat status;
    if (!behind(fd, &op, &status)) return (int)syscall(SYS_fallocate, fd, how, at, size);
    DO(&op, (int)syscall(SYS_fallocate, fd, how, at, size));
}
int fallocate64(int fd, int how, off64_t at, off64_t size) { return fallocate(fd, how, at, size); }
int posix_fallocate(int fd, off_t at, off_t size) { return fallocate(fd, 0, at, size) ? errno : 0; }
int posix_fallocate64(int fd, off64_t at, off64_t size) { return fallocate(fd, 0, at, size) ? errno : 0; }

static int do_sync(int fd, long call) {
    struct op op = {.kind = SYNC};
    struct stat status;
    if (!behind(fd, &op, &status)) return (int)syscall(call, fd);
    DO(&op, (int)syscall(call, fd));
}
int fsync(int fd) { return do_sync(fd, SYS_fsync); }
int fdatasync(int fd) { return do_sync(fd, SYS_fdatasync); }

int fchmod(int fd, mode_t bits) {
    struct op op = {.kind = MODE, .mode = bits};
    struct stat status;
    if (!behind(fd, &op, &status)) return (int)syscall(SYS_fchmod, fd, bits);
    DO(&op, (int)syscall(SYS_fchmod, fd, bits));
}
int futimens(int fd, const struct timespec times[2]) {
    struct op op = {.kind = TIMES};
    struct stat status;
    if (!behind(fd, &op, &status)) return (int)syscall(SYS_utimensat, fd, NULL, times, 0);
    DO(&op, (int)syscall(SYS_utimensat, fd, NULL, times, 0));
}
