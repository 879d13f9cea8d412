/* member.c: members on files and block devices, and implemented by the caller; and the one door through which the engine does I/O.
 * Members in memory: member_mem.c.
 *
 * M1  A request is whole or failed: what a kind transfers in part is gone on with, and an end of file is a dead member.
 * M2  Nothing is written beyond the size that the member had when it was opened: a file that shrank is dead, not to be extended.
 * M3  A dead member answers -ENODEV for ever.
 */
#include "internal.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

/* ---- errors ------------------------------------------------------------------------------------------------------- */

static _Thread_local struct rl_error last_error;

void rl_last_error(struct rl_error *out)
{
    *out = last_error;
}

int rl_fail(int code, const char *call, int32_t slot, uint64_t offset, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    last_error.code = -code;
    last_error.slot = slot;
    last_error.offset = offset;
    snprintf(last_error.call, sizeof last_error.call, "%s", call);
    vsnprintf(last_error.text, sizeof last_error.text, format, arguments);
    va_end(arguments);
    return -code;
}

_Noreturn void rl_assert_failed(const char *condition, const char *file, int line)
{
    /* the only output of the engine: our own bug, with nothing left to trust */
    fprintf(stderr, "raidlib: assertion failed: %s (%s:%d)\n", condition, file, line);
    abort();
}

int rl_member_new(size_t bytes, const struct rl_member_ops *ops, const char *name, rl_member **out)
{
    rl_member *m = calloc(1, bytes);
    char *copy = strdup(name ? name : ops->kind);
    if (!m || !copy) {
        free(m);
        free(copy);
        return rl_fail(ENOMEM, "rl_member_open", -1, 0, "no memory for a member");
    }
    m->ops = ops;
    m->name = copy;
    m->block_bytes = 1;
    m->memory_align = 1;
    pthread_mutex_init(&m->trouble_lock, NULL);
    *out = m;
    return 0;
}

int rl_member_well(rl_member *member)
{
    (void)member;
    return 0;
}

/* What does not fit a member's blocks or memory goes by way of a bounce buffer, piece by piece. */
#define BOUNCE_BYTES 65536u

/* ---- files and block devices -------------------------------------------------------------------------------------- */

struct fd_member {
    rl_member base;
    int fd;
    int past_cache; /* the same file once more, with O_DIRECT; -1 if it cannot be had, or `fd` is so already */
    bool is_file, has_path;
    dev_t device;
    ino_t inode;
    const char *_Atomic dead; /* why, or NULL */
    atomic_int lost_write; /* an errno: what the page cache held could not be written; told by every flush from then on */
};

static int fd_dead(struct fd_member *m, uint64_t offset, const char *why)
{
    atomic_store(&m->dead, why);
    return rl_fail(ENODEV, m->base.name, -1, offset, "%s %s", m->base.name, why);
}

/* M2, M3 */
static int fd_alive(struct fd_member *m, uint64_t offset)
{
    struct stat now;
    const char *dead = atomic_load(&m->dead);
    if (dead)
        return fd_dead(m, offset, dead);
    if (!m->is_file)
        return 0;
    if (fstat(m->fd, &now))
        return fd_dead(m, offset, "cannot be looked at any more");
    if ((uint64_t)now.st_size < m->base.size_bytes)
        return fd_dead(m, offset, "was truncated");
    if (now.st_nlink == 0 && m->has_path)
        return fd_dead(m, offset, "was deleted");
    return 0;
}

/* For files without direct I/O: makes what the page cache holds of the range durable and drops it, so that the next read asks the device. A large folio of the cache
 * that the range covers in part stays, which is why this is second best. */
static void fd_drop_cache(struct fd_member *m, uint64_t length, uint64_t offset)
{
    /* this call takes the error of a write-back away from the fdatasync that would have told it */
    int failed = sync_file_range(m->fd, (off64_t)offset, (off64_t)length,
                                 SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    if (failed && errno != ESPIPE)
        atomic_store(&m->lost_write, errno);
    posix_fadvise(m->fd, (off_t)offset, (off_t)length, POSIX_FADV_DONTNEED);
}

/* M1 */
static int read_whole(struct fd_member *m, int fd, char *buffer, uint64_t length, uint64_t offset)
{
    for (uint64_t done = 0; done < length;) {
        ssize_t got = pread(fd, buffer + done, length - done, (off_t)(offset + done));
        if (got == 0)
            return fd_dead(m, offset + done, "ends too early: it was truncated");
        if (got < 0 && errno != EINTR)
            return rl_fail(errno == ENXIO ? ENODEV : errno, m->base.name, -1, offset, "reading %s failed: %s", m->base.name,
                           strerror(errno));
        done += got > 0 ? (uint64_t)got : 0;
    }
    return 0;
}

/* Reads what the device holds; -EINVAL or -EOPNOTSUPP: not with direct I/O. The kernel writes back what the cache holds of the range first. */
static int read_past_cache(struct fd_member *m, char *buffer, uint64_t length, uint64_t offset)
{
    _Alignas(RL_BUFFER_ALIGN) char bounce[BOUNCE_BYTES];
    if (m->past_cache < 0)
        return -EOPNOTSUPP;
    if ((length | offset | (uintptr_t)buffer) % RL_BUFFER_ALIGN == 0)
        return read_whole(m, m->past_cache, buffer, length, offset);
    for (uint64_t done = 0, step = 0; done < length; done += step) {
        uint64_t low = rl_round_down(offset + done, RL_BUFFER_ALIGN), skip = offset + done - low;
        ssize_t got = pread(m->past_cache, bounce, BOUNCE_BYTES, (off_t)low); /* up to the end of the file, which need not be aligned */
        step = rl_min(length - done, (uint64_t)(got > 0 ? got : 0) - rl_min((uint64_t)(got > 0 ? got : 0), skip));
        if (step == 0) /* failed or too short: words and judgement are of the usual way */
            return got < 0 && errno != EINVAL && errno != EOPNOTSUPP ? rl_fail(errno == ENXIO ? ENODEV : errno, m->base.name, -1, offset,
                                                                               "reading %s failed: %s", m->base.name, strerror(errno))
                                                                     : -EOPNOTSUPP;
        memcpy(buffer + done, bounce + skip, step);
    }
    return 0;
}

static int fd_pread(rl_member *member, void *buffer, uint64_t length, uint64_t offset, uint32_t flags)
{
    struct fd_member *m = (struct fd_member *)member;
    if (atomic_load(&m->dead))
        return fd_alive(m, offset);
    if (flags & RL_IO_DEVICE && !(member->flags & RL_MEMBER_DIRECT)) {
        int rc = read_past_cache(m, buffer, length, offset);
        if (rc != -EINVAL && rc != -EOPNOTSUPP)
            return rc;
        fd_drop_cache(m, length, offset);
    }
    return read_whole(m, m->fd, buffer, length, offset);
}

static int fd_pwrite(rl_member *member, const void *buffer, uint64_t length, uint64_t offset)
{
    struct fd_member *m = (struct fd_member *)member;
    int rc = fd_alive(m, offset);
    if (rc)
        return rc;
    for (uint64_t done = 0; done < length;) { /* M1 */
        ssize_t put = pwrite(m->fd, (const char *)buffer + done, length - done, (off_t)(offset + done));
        if (put == 0)
            return rl_fail(EIO, member->name, -1, offset, "writing %s made no progress", member->name);
        if (put < 0 && errno != EINTR)
            return rl_fail(errno == ENXIO ? ENODEV : errno, member->name, -1, offset, "writing %s failed: %s", member->name,
                           strerror(errno));
        done += put > 0 ? (uint64_t)put : 0;
    }
    return 0;
}

static int fd_flush(rl_member *member)
{
    struct fd_member *m = (struct fd_member *)member;
    int rc = fd_alive(m, 0);
    if (rc)
        return rc;
    int failed = fdatasync(m->fd) ? errno : 0, lost = atomic_load(&m->lost_write);
    if (failed || lost)
        return rl_fail(failed ? failed : lost, member->name, -1, 0, "flushing %s failed: %s", member->name,
                       strerror(failed ? failed : lost));
    return 0;
}

/* A hole, or (not discard) zeros for which the space is kept. */
static int fd_zero(rl_member *member, uint64_t length, uint64_t offset, uint32_t flags)
{
    struct fd_member *m = (struct fd_member *)member;
    int mode = FALLOC_FL_KEEP_SIZE | (flags & RL_ZERO_DISCARD ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
    int rc = fd_alive(m, offset), failed = 0;
    if (rc)
        return rc;
    do
        failed = fallocate(m->fd, mode, (off_t)offset, (off_t)length) ? errno : 0;
    while (failed == EINTR);
    if (failed == EOPNOTSUPP || failed == ENOSYS || failed == EINVAL || failed == EPERM || failed == ENODEV)
        return rl_fail(EOPNOTSUPP, member->name, -1, offset, "%s cannot make zeros without writing them", member->name);
    return failed ? rl_fail(failed, member->name, -1, offset, "making zeros in %s failed: %s", member->name, strerror(failed)) : 0;
}

/* Less than this counts as none: what is left is needed for the metadata of what lies there. */
#define ROOM_BYTES 1048576u

static void look_for_room(struct fd_member *m)
{
    struct statvfs fs;
    if (!m->is_file || fstatvfs(m->fd, &fs))
        return;
    uint64_t blocks = geteuid() == 0 ? fs.f_bfree : fs.f_bavail;
    atomic_store(&m->base.no_room, blocks * fs.f_frsize < ROOM_BYTES);
}

static int fd_probe(rl_member *member)
{
    struct fd_member *m = (struct fd_member *)member;
    struct stat there;
    int rc = fd_alive(m, 0);
    look_for_room(m);
    if (rc || !m->has_path)
        return rc;
    if (stat(member->name, &there))
        return errno == ENOENT || errno == ENOTDIR ? fd_dead(m, 0, "is not there any more") : 0;
    if (m->is_file && (there.st_dev != m->device || there.st_ino != m->inode))
        return fd_dead(m, 0, "was replaced by another file");
    return 0;
}

static void fd_close(rl_member *member)
{
    struct fd_member *m = (struct fd_member *)member;
    close(m->fd);
    if (m->past_cache >= 0)
        close(m->past_cache);
    m->fd = m->past_cache = -1;
}

static const struct rl_member_ops fd_ops = {
    .kind = "file", .pread = fd_pread, .pwrite = fd_pwrite, .zero = fd_zero, .flush = fd_flush, .probe = fd_probe, .close = fd_close};

/* On a file system that another process or another machine serves, and that may therefore be silent for ever. statfs(2) has the numbers. */
static bool lies_elsewhere(int fd)
{
    static const uint32_t magics[] = {
        0x65735546, /* FUSE */
        0x6969,     /* NFS */
        0xff534d42, /* CIFS */
        0xfe534d42, /* SMB 2 and 3 */
        0x517b,     /* SMB 1 */
        0x00c36400, /* Ceph */
        0x01021997, /* 9p */
        0x5346414f, /* AFS */
        0x6b414653, /* kAFS */
        0x73757245, /* Coda */
        0x01161970, /* GFS2 */
        0x7461636f, /* OCFS2 */
        0x0bd00bd0, /* Lustre */
    };
    struct statfs where;
    if (fstatfs(fd, &where))
        return true;
    for (unsigned i = 0; i < sizeof magics / sizeof *magics; i++) {
        if ((uint32_t)where.f_type == magics[i])
            return true;
    }
    return false;
}

/* The same file again, by way of its descriptor: its name may be another file's by now. */
static int open_past_cache(int fd)
{
    char name[32];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    return open(name, O_RDONLY | O_DIRECT | O_CLOEXEC);
}

int rl_member_open_fd(int fd, const char *path, uint32_t flags, rl_member **out)
{
    static const char call[] = "rl_member_open_fd";
    struct stat now;
    uint64_t size = 0;
    if (fstat(fd, &now))
        return rl_fail(errno, call, -1, 0, "%s: %s", path ? path : "member", strerror(errno));
    if (!S_ISREG(now.st_mode) && !S_ISBLK(now.st_mode))
        return rl_fail(EINVAL, call, -1, 0, "%s is neither a file nor a block device", path ? path : "member");
    size = (uint64_t)now.st_size;
    if (S_ISBLK(now.st_mode) && ioctl(fd, BLKGETSIZE64, &size))
        return rl_fail(errno, call, -1, 0, "%s does not tell its size: %s", path ? path : "member", strerror(errno));
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (copy < 0)
        return rl_fail(errno, call, -1, 0, "%s: %s", path ? path : "member", strerror(errno));
    rl_member *base = NULL;
    int rc = rl_member_new(sizeof(struct fd_member), &fd_ops, path, &base);
    if (rc) {
        close(copy);
        return rc;
    }
    struct fd_member *m = (struct fd_member *)base;
    m->fd = copy;
    m->past_cache = flags & RL_MEMBER_DIRECT ? -1 : open_past_cache(copy);
    base->can_hang = S_ISBLK(now.st_mode) || lies_elsewhere(copy);
    m->is_file = S_ISREG(now.st_mode);
    m->has_path = path != NULL;
    m->device = now.st_dev;
    m->inode = now.st_ino;
    base->flags = flags;
    base->size_bytes = size;
    if (flags & RL_MEMBER_DIRECT)
        base->block_bytes = base->memory_align = RL_BUFFER_ALIGN;
    *out = base;
    return 0;
}

/* ---- implemented by the caller ------------------------------------------------------------------------------------ */

struct callback_member {
    rl_member base;
    struct rl_member_callbacks callbacks;
    void *context;
};

static int told(const rl_member *member, int rc, const char *what, uint64_t offset)
{
    return rc < 0 ? rl_fail(-rc, member->name, -1, offset, "%s %s failed: %s", what, member->name, strerror(-rc)) : 0;
}

static int callback_pread(rl_member *member, void *buffer, uint64_t length, uint64_t offset, uint32_t flags)
{
    struct callback_member *m = (struct callback_member *)member;
    (void)flags;
    return told(member, m->callbacks.pread(m->context, buffer, length, offset), "reading", offset);
}

static int callback_pwrite(rl_member *member, const void *buffer, uint64_t length, uint64_t offset)
{
    struct callback_member *m = (struct callback_member *)member;
    return told(member, m->callbacks.pwrite(m->context, buffer, length, offset), "writing", offset);
}

static int callback_flush(rl_member *member)
{
    struct callback_member *m = (struct callback_member *)member;
    return told(member, m->callbacks.flush(m->context), "flushing", 0);
}

static void callback_close(rl_member *member)
{
    (void)member; /* the context is the caller's */
}

static const struct rl_member_ops callback_ops = {.kind = "object",
                                                  .pread = callback_pread,
                                                  .pwrite = callback_pwrite,
                                                  .flush = callback_flush,
                                                  .probe = rl_member_well,
                                                  .close = callback_close};

int rl_member_open_callbacks(const struct rl_member_callbacks *callbacks, void *context, uint64_t size_bytes, uint32_t block_bytes,
                             const char *name, rl_member **out)
{
    static const char call[] = "rl_member_open_callbacks";
    if (callbacks->size_of != sizeof *callbacks)
        return rl_fail(EINVAL, call, -1, 0, "callbacks of another version of the engine");
    if (block_bytes == 0 || block_bytes & (block_bytes - 1) || block_bytes > RL_BUFFER_ALIGN)
        return rl_fail(EINVAL, call, -1, 0, "a block size of %u bytes is not a power of two up to %u", block_bytes, RL_BUFFER_ALIGN);
    rl_member *base = NULL;
    int rc = rl_member_new(sizeof(struct callback_member), &callback_ops, name, &base);
    if (rc)
        return rc;
    struct callback_member *m = (struct callback_member *)base;
    m->callbacks = *callbacks;
    m->context = context;
    base->can_hang = true;
    base->size_bytes = size_bytes;
    base->block_bytes = block_bytes;
    *out = base;
    return 0;
}

/* ---- the door ----------------------------------------------------------------------------------------------------- */

void rl_member_free(rl_member *member)
{
    member->ops->close(member);
    if (member->lane)
        rl_lane_free(member->lane);
    pthread_mutex_destroy(&member->trouble_lock);
    free(member->name);
    free(member);
}

int rl_member_close(rl_member *member)
{
    if (!member)
        return 0;
    if (atomic_load(&member->users))
        return rl_fail(EBUSY, "rl_member_close", -1, 0, "%s is in use by an array", member->name);
    if (member->ops->let_go)
        member->ops->let_go(member);
    if (member->lane) {
        rl_lane_close(member->lane); /* D4: freed by the last thread that serves it */
        return 0;
    }
    while (atomic_load(&member->inside)) /* on their way out */
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    rl_member_free(member);
    return 0;
}

void rl_member_forked(rl_member *member)
{
    if (member->ops != &fd_ops)
        return; /* memory is the child's own; an object is the caller's */
    fd_close(member);
}

int rl_member_noted(rl_member *member, int rc)
{
    if (rc) {
        pthread_mutex_lock(&member->trouble_lock);
        snprintf(member->trouble, sizeof member->trouble, "%.159s", last_error.text);
        pthread_mutex_unlock(&member->trouble_lock);
    }
    return rc;
}

void rl_member_trouble(rl_member *member, char *out, size_t length)
{
    pthread_mutex_lock(&member->trouble_lock);
    snprintf(out, length, "%s", member->trouble);
    pthread_mutex_unlock(&member->trouble_lock);
}

uint64_t rl_member_size(const rl_member *member)
{
    return member->size_bytes;
}

int rl_member_can_hang(const rl_member *member)
{
    return member->can_hang;
}

uint32_t rl_member_block_bytes(const rl_member *member)
{
    return member->block_bytes;
}

static int check_range(const rl_member *member, uint64_t length, uint64_t offset)
{
    if (offset > member->size_bytes || length > member->size_bytes - offset)
        return rl_fail(EINVAL, member->name, -1, offset, "%llu bytes at %llu are not inside %s, which has %llu", (unsigned long long)length,
                       (unsigned long long)offset, member->name, (unsigned long long)member->size_bytes);
    return 0;
}

static bool aligned(const rl_member *m, const void *buffer, uint64_t length, uint64_t offset)
{
    return (length | offset) % m->block_bytes == 0 && (uintptr_t)buffer % m->memory_align == 0;
}

static int do_read(rl_member *member, void *buffer, uint64_t length, uint64_t offset, uint32_t flags)
{
    _Alignas(RL_BUFFER_ALIGN) char bounce[BOUNCE_BYTES];
    int rc = 0;
    if (aligned(member, buffer, length, offset))
        return member->ops->pread(member, buffer, length, offset, flags);
    for (uint64_t done = 0, step = 0; rc == 0 && done < length; done += step) {
        uint64_t low = rl_round_down(offset + done, member->block_bytes);
        uint64_t high = rl_min(rl_min(rl_round_up(offset + length, member->block_bytes), member->size_bytes), low + BOUNCE_BYTES);
        rc = member->ops->pread(member, bounce, high - low, low, flags);
        step = rl_min(high - (offset + done), length - done);
        if (rc == 0)
            memcpy((char *)buffer + done, bounce + (offset + done - low), step);
    }
    return rc;
}

static int do_write(rl_member *member, const void *buffer, uint64_t length, uint64_t offset)
{
    _Alignas(RL_BUFFER_ALIGN) char bounce[BOUNCE_BYTES];
    int rc = 0;
    if (aligned(member, buffer, length, offset))
        return member->ops->pwrite(member, buffer, length, offset);
    for (uint64_t done = 0, step = 0; rc == 0 && done < length; done += step) {
        step = rl_min(length - done, BOUNCE_BYTES);
        memcpy(bounce, (const char *)buffer + done, step);
        rc = member->ops->pwrite(member, bounce, step, offset + done);
    }
    return rc;
}

static int do_zero(rl_member *member, uint64_t length, uint64_t offset, uint32_t flags)
{
    if (!member->ops->zero)
        return rl_fail(EOPNOTSUPP, "rl_member_zero", -1, offset, "%s cannot make zeros without writing them", member->name);
    return member->ops->zero(member, length, offset, flags);
}

/* What no kind of member need look at: the range, and whether it may be written. */
static int check_io(const struct rl_io *io)
{
    const rl_member *m = io->member;
    bool changes = io->op == RL_OP_WRITE || io->op == RL_OP_ZERO;
    if (io->op == RL_OP_FLUSH || io->op == RL_OP_PROBE)
        return 0;
    int rc = check_range(m, io->length, io->offset);
    if (rc == 0 && changes && m->flags & RL_MEMBER_READ_ONLY)
        rc = rl_fail(EROFS, "rl_member_pwrite", -1, io->offset, "%s is open read-only", m->name);
    if (rc == 0 && changes && (io->length | io->offset) % m->block_bytes)
        rc = rl_fail(EINVAL, "rl_member_pwrite", -1, io->offset, "%llu bytes at %llu are not whole blocks of %s",
                     (unsigned long long)io->length, (unsigned long long)io->offset, m->name);
    return rc;
}

void rl_member_do(struct rl_io *io)
{
    rl_member *m = io->member;
    bool counted = m->ops->let_go != NULL;
    int rc = 0;
    if (counted)
        atomic_fetch_add(&m->inside, 1);
    if (io->op == RL_OP_READ)
        rc = do_read(m, io->buffer, io->length, io->offset, io->flags);
    else if (io->op == RL_OP_WRITE)
        rc = do_write(m, io->buffer, io->length, io->offset);
    else if (io->op == RL_OP_ZERO)
        rc = do_zero(m, io->length, io->offset, io->flags);
    else if (io->op == RL_OP_FLUSH)
        rc = m->flags & RL_MEMBER_READ_ONLY ? 0 : m->ops->flush(m);
    else
        rc = m->ops->probe(m);
    io->result = rl_member_noted(m, rc);
    if (counted) /* the last touch: it may be gone now */
        atomic_fetch_sub(&m->inside, 1);
}

void rl_io_run(struct rl_io *ios, unsigned count)
{
    uint64_t waited_ns = 0;
    for (unsigned i = 0; i < count; i++) {
        ios[i].ask = NULL;
        ios[i].result = rl_member_noted(ios[i].member, check_io(&ios[i]));
        if (ios[i].result == 0 && ios[i].member->lane)
            rl_lane_submit(&ios[i]);
    }
    for (unsigned i = 0; i < count; i++) {
        if (ios[i].result == 0 && !ios[i].member->lane)
            rl_member_do(&ios[i]);
    }
    for (unsigned i = 0; i < count; i++) {
        if (ios[i].ask)
            rl_lane_wait(&ios[i], &waited_ns);
    }
}

static int run_one(struct rl_io io)
{
    rl_io_run(&io, 1);
    return io.result;
}

int rl_member_pread(rl_member *member, void *buffer, uint64_t length, uint64_t offset, uint32_t flags)
{
    return run_one(
        (struct rl_io){.member = member, .op = RL_OP_READ, .buffer = buffer, .length = length, .offset = offset, .flags = (uint8_t)flags});
}

int rl_member_pwrite(rl_member *member, const void *buffer, uint64_t length, uint64_t offset)
{
    return run_one(
        (struct rl_io){.member = member, .op = RL_OP_WRITE, .buffer = (void *)(uintptr_t)buffer, .length = length, .offset = offset});
}

int rl_member_zero(rl_member *member, uint64_t length, uint64_t offset, uint32_t flags)
{
    return run_one((struct rl_io){.member = member, .op = RL_OP_ZERO, .length = length, .offset = offset, .flags = (uint8_t)flags});
}

int rl_member_flush(rl_member *member)
{
    return run_one((struct rl_io){.member = member, .op = RL_OP_FLUSH});
}

int rl_member_probe(rl_member *member)
{
    return run_one((struct rl_io){.member = member, .op = RL_OP_PROBE});
}
