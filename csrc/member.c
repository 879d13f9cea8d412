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

/* ---- files and block devices -------------------------------------------------------------------------------------- */

struct fd_member {
    rl_member base;
    int fd;
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

/* Makes what the page cache holds of the range durable and drops it, so that the next read asks the device. */
static void fd_drop_cache(struct fd_member *m, uint64_t length, uint64_t offset)
{
    /* this call takes the error of a write-back away from the fdatasync that would have told it */
    int failed = sync_file_range(m->fd, (off64_t)offset, (off64_t)length,
                                 SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    if (failed && errno != ESPIPE)
        atomic_store(&m->lost_write, errno);
    posix_fadvise(m->fd, (off_t)offset, (off_t)length, POSIX_FADV_DONTNEED);
}

static int fd_pread(rl_member *member, void *buffer, uint64_t length, uint64_t offset, uint32_t flags)
{
    struct fd_member *m = (struct fd_member *)member;
    if (atomic_load(&m->dead))
        return fd_alive(m, offset);
    if (flags & RL_IO_DEVICE && !(member->flags & RL_MEMBER_DIRECT))
        fd_drop_cache(m, length, offset);
    for (uint64_t done = 0; done < length;) { /* M1 */
        ssize_t got = pread(m->fd, (char *)buffer + done, length - done, (off_t)(offset + done));
        if (got == 0)
            return fd_dead(m, offset + done, "ends too early: it was truncated");
        if (got < 0 && errno != EINTR)
            return rl_fail(errno == ENXIO ? ENODEV : errno, member->name, -1, offset, "reading %s failed: %s", member->name,
                           strerror(errno));
        done += got > 0 ? (uint64_t)got : 0;
    }
    return 0;
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

static int fd_probe(rl_member *member)
{
    struct fd_member *m = (struct fd_member *)member;
    struct stat there;
    int rc = fd_alive(m, 0);
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
    close(((struct fd_member *)member)->fd);
}

static const struct rl_member_ops fd_ops = {"file", fd_pread, fd_pwrite, fd_flush, fd_probe, fd_close};

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

static const struct rl_member_ops callback_ops = {"object",       callback_pread, callback_pwrite,
                                                  callback_flush, rl_member_well, callback_close};

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
    base->size_bytes = size_bytes;
    base->block_bytes = block_bytes;
    *out = base;
    return 0;
}

/* ---- the door ----------------------------------------------------------------------------------------------------- */

int rl_member_close(rl_member *member)
{
    if (!member)
        return 0;
    if (atomic_load(&member->users))
        return rl_fail(EBUSY, "rl_member_close", -1, 0, "%s is in use by an array", member->name);
    member->ops->close(member);
    pthread_mutex_destroy(&member->trouble_lock);
    free(member->name);
    free(member);
    return 0;
}

/* Keeps the words of a failure for whoever will have to explain it; passes the result on. */
static int noted(rl_member *member, int rc)
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

int rl_member_pread(rl_member *member, void *buffer, uint64_t length, uint64_t offset, uint32_t flags)
{
    int rc = check_range(member, length, offset);
    if (rc || aligned(member, buffer, length, offset))
        return rc ? rc : member->ops->pread(member, buffer, length, offset, flags);
    uint64_t low = rl_round_down(offset, member->block_bytes);
    uint64_t high = rl_min(rl_round_up(offset + length, member->block_bytes), member->size_bytes);
    void *bounce = aligned_alloc(RL_BUFFER_ALIGN, rl_round_up(high - low, RL_BUFFER_ALIGN));
    if (!bounce)
        return rl_fail(ENOMEM, "rl_member_pread", -1, offset, "no memory for %llu bytes", (unsigned long long)(high - low));
    rc = member->ops->pread(member, bounce, high - low, low, flags);
    if (rc == 0)
        memcpy(buffer, (char *)bounce + (offset - low), length);
    free(bounce);
    return rc;
}

int rl_member_pwrite(rl_member *member, const void *buffer, uint64_t length, uint64_t offset)
{
    int rc = check_range(member, length, offset);
    if (rc == 0 && member->flags & RL_MEMBER_READ_ONLY)
        return rl_fail(EROFS, "rl_member_pwrite", -1, offset, "%s is open read-only", member->name);
    if (rc || aligned(member, buffer, length, offset))
        return rc ? rc : member->ops->pwrite(member, buffer, length, offset);
    if ((length | offset) % member->block_bytes)
        return rl_fail(EINVAL, "rl_member_pwrite", -1, offset, "%llu bytes at %llu are not whole blocks of %s", (unsigned long long)length,
                       (unsigned long long)offset, member->name);
    void *bounce = aligned_alloc(RL_BUFFER_ALIGN, rl_round_up(length, RL_BUFFER_ALIGN));
    if (!bounce)
        return rl_fail(ENOMEM, "rl_member_pwrite", -1, offset, "no memory for %llu bytes", (unsigned long long)length);
    memcpy(bounce, buffer, length);
    rc = member->ops->pwrite(member, bounce, length, offset);
    free(bounce);
    return rc;
}

int rl_member_flush(rl_member *member)
{
    return member->flags & RL_MEMBER_READ_ONLY ? 0 : member->ops->flush(member);
}

int rl_member_probe(rl_member *member)
{
    return noted(member, member->ops->probe(member));
}

void rl_io_run(struct rl_io *ios, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct rl_io *io = &ios[i];
        if (io->op == RL_OP_READ)
            io->result = noted(io->member, rl_member_pread(io->member, io->buffer, io->length, io->offset, io->flags));
        else if (io->op == RL_OP_WRITE)
            io->result = noted(io->member, rl_member_pwrite(io->member, io->buffer, io->length, io->offset));
        else
            io->result = noted(io->member, rl_member_flush(io->member));
    }
}
