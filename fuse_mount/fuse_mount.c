/* fuse_mount.c: the FUSE server. libfuse3's low level interprets the protocol; mounting, receiving and threads are our own, because
 *  - libfuse forks in a process of many threads and lets fusermount3 and perror() write to our stderr;
 *  - its loop cannot be woken without signals or cancellation when the mount is gone but a file is still open;
 *  - our buffers put the payload of a write on a page boundary, so that members with direct I/O take it as it is.
 *
 * INVARIANTS
 *  F1  A request that was read from the kernel is answered before its thread ends: stopping breaks no request that was begun.
 *  F2  While `stopping` is set and a thread serves, a wake-up is queued in the kernel or on its way, or a thread that will send one is
 *      busy: each thread that ends sends one. So all of them end, even if none of them would ever get a request again.
 *  F3  `session` lives while any thread serves; it goes when all are joined, under mount_lock.
 *  F4  We unmount only what we mounted: the mount point must still show our device number and mount id (a unique one from Linux 6.8 on).
 *  F5  No reply carries a code that the kernel would refuse (the request would hang) or remember as "never ask again" (ENOSYS).
 *
 * LOCKS: mount_lock (session's end, mounted) and thread_lock (threads) are never held together; no operation is called under either.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#define FUSE_USE_VERSION 312

#include "fuse_mount.h"

#include "../csrc/raidlib.h"

#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define FOPEN_NOFLUSH (1 << 5)       /* Linux 5.16, where it is defined the same; an older kernel ignores both */
#ifndef FOPEN_PARALLEL_DIRECT_WRITES /* Linux 6.2; libfuse knows it from 3.15 on */
#define FOPEN_PARALLEL_DIRECT_WRITES (1 << 6)
#endif
#ifndef PR_SET_IO_FLUSHER /* Linux 5.6 */
#define PR_SET_IO_FLUSHER 57
#define PR_GET_IO_FLUSHER 58
#endif
#ifndef STATX_MNT_ID_UNIQUE /* Linux 6.8; an older kernel gives an id that may come again */
#define STATX_MNT_ID_UNIQUE 0x4000u
#endif

#define STRINGIFY(value) #value
#define STRING_OF(macro) STRINGIFY(macro)

#define TRANSFER_BYTES 1048576 /* of one request: what the kernel grants (256 pages) */
#define PAGE_BYTES 4096
#define THREADS_MAX 24      /* requests served at once; a thread is started when none is idle. Each has a buffer of TRANSFER_BYTES */
#define BACKGROUND_MAX 256 /* asynchronous direct I/O that the kernel lets wait for us; its default of 12 starves a loop device */
#define ENTRY_TIMEOUT_S 1e9 /* names never change */
#define ATTR_TIMEOUT_S 1.0     /* the size changes when the array grows */
#define VOLUME_INODE 2
#define VOLUME_NAME "volume"
#define KERNEL_ERRNO_MAX 511 /* a reply with a larger one is refused */

/* A write request is two headers and its payload: received so that the payload begins at a page. */
#define RECEIVE_OFFSET (PAGE_BYTES - sizeof(struct fuse_in_header) - sizeof(struct fuse_write_in))
#define BUFFER_BYTES (PAGE_BYTES + TRANSFER_BYTES + PAGE_BYTES)

/* What tells one mount from another that came to the same path. No padding: compared as bytes. */
struct place {
    uint32_t device_major, device_minor;
    uint64_t mount_id;
};

struct rl_fuse {
    void *handle;
    struct rl_block_ops ops;
    char *mountpoint; /* absolute */
    bool read_only, allow_other;
    uid_t uid;
    gid_t gid;
    pid_t pid; /* of the process that mounted */
    struct timespec born;
    struct place place; /* of the mount, while it is mounted */
    int fd;             /* /dev/fuse; the session closes it */
    atomic_int stopping;
    atomic_int idle;       /* threads that wait for a request, or will without further ado */
    atomic_int error;      /* -errno that ended the connection, 0 */
    atomic_int protection; /* RL_FUSE_* bits, -EAGAIN before rl_fuse_run() */
    pthread_mutex_t mount_lock;
    struct fuse_session *session; /* mount_lock, see F3; NULL once rl_fuse_run() has ended */
    bool mounted, running, asked; /* mount_lock; asked: to stop */
    int hold;                     /* mount_lock; `volume`, opened by the first stop, or -1 */
    pthread_mutex_t thread_lock;
    unsigned thread_count;          /* thread_lock */
    pthread_t threads[THREADS_MAX]; /* thread_lock; those that rl_fuse_run() joins */
};

/* Of a serving thread: TRANSFER_BYTES, page-aligned. libfuse calls back on the same thread, so this needs no lock. */
static _Thread_local char *payload;

/* ---- Errors ------------------------------------------------------------------------------------------------------- */

static _Thread_local char error_text[512];

const char *rl_fuse_error(void)
{
    return error_text;
}

__attribute__((format(printf, 2, 3))) static int fail(int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error_text, sizeof error_text, format, arguments);
    va_end(arguments);
    return -code;
}

/* What libfuse would write to stderr. */
static void keep_log(enum fuse_log_level level, const char *format, va_list arguments)
{
    (void)level;
    vsnprintf(error_text, sizeof error_text, format, arguments);
    error_text[strcspn(error_text, "\n")] = 0;
}

static bool forked(const struct rl_fuse *fuse)
{
    return fuse->pid != getpid();
}

/* ---- Replies ------------------------------------------------------------------------------------------------------ */

static void reply_code(fuse_req_t request, int rc)
{
    bool fit = rc >= -KERNEL_ERRNO_MAX && rc != -ENOSYS; /* F5 */
    fuse_reply_err(request, rc >= 0 ? 0 : fit ? -rc : EIO);
}

static uint64_t volume_bytes(const struct rl_fuse *fuse)
{
    return fuse->ops.size(fuse->handle);
}

/* How much of a request lies before the end. */
static uint64_t inside(const struct rl_fuse *fuse, uint64_t length, off_t offset)
{
    uint64_t end = volume_bytes(fuse), start = (uint64_t)offset;
    return start >= end ? 0 : length < end - start ? length : end - start;
}

/* st_blksize travels as a power of two. */
static uint32_t preferred_bytes(const struct rl_fuse *fuse)
{
    uint32_t wanted = fuse->ops.block_bytes(fuse->handle), bytes = PAGE_BYTES;
    while (bytes < TRANSFER_BYTES && bytes * 2 <= wanted)
        bytes *= 2;
    return bytes;
}

static int attributes(const struct rl_fuse *fuse, fuse_ino_t inode, struct stat *out)
{
    memset(out, 0, sizeof *out);
    out->st_ino = inode;
    out->st_uid = fuse->uid;
    out->st_gid = fuse->gid;
    out->st_atim = out->st_mtim = out->st_ctim = fuse->born;
    if (inode == FUSE_ROOT_ID) {
        out->st_mode = S_IFDIR | 0555;
        out->st_nlink = 2;
        return 0;
    }
    if (inode != VOLUME_INODE)
        return -ENOENT;
    out->st_mode = S_IFREG | (fuse->read_only ? 0400 : 0600);
    out->st_nlink = 1;
    out->st_size = (off_t)volume_bytes(fuse);
    out->st_blocks = (blkcnt_t)(volume_bytes(fuse) / 512);
    out->st_blksize = (blksize_t)preferred_bytes(fuse);
    return 0;
}

/* ---- Operations: names and attributes ----------------------------------------------------------------------------- */

static void on_init(void *userdata, struct fuse_conn_info *connection)
{
    (void)userdata;
    connection->max_read = TRANSFER_BYTES;
    connection->max_write = TRANSFER_BYTES;
    connection->max_background = BACKGROUND_MAX;
    /* O_TRUNC comes as a change of the size, which is refused: the kernel must not believe that an open emptied the file. */
    connection->want &= ~(unsigned)FUSE_CAP_ATOMIC_O_TRUNC;
}

static void on_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param entry = {.ino = VOLUME_INODE, .attr_timeout = ATTR_TIMEOUT_S, .entry_timeout = ENTRY_TIMEOUT_S};
    attributes(fuse_req_userdata(request), VOLUME_INODE, &entry.attr);
    if (parent != FUSE_ROOT_ID || strcmp(name, VOLUME_NAME) != 0)
        reply_code(request, -ENOENT);
    else
        fuse_reply_entry(request, &entry);
}

static void on_getattr(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
    struct stat status;
    int rc = attributes(fuse_req_userdata(request), inode, &status);
    (void)file;
    if (rc < 0)
        reply_code(request, rc);
    else
        fuse_reply_attr(request, &status, ATTR_TIMEOUT_S);
}

static void on_setattr(fuse_req_t request, fuse_ino_t inode, struct stat *wanted, int which, struct fuse_file_info *file)
{
    bool resizes =
        (which & FUSE_SET_ATTR_SIZE) && (inode != VOLUME_INODE || (uint64_t)wanted->st_size != volume_bytes(fuse_req_userdata(request)));
    if (resizes || (which & (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID)))
        reply_code(request, -EPERM);
    else
        on_getattr(request, inode, file);
}

static void on_readdir(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *file)
{
    static const char *const names[] = {".", "..", VOLUME_NAME};
    size_t used = 0, need = 0;
    (void)inode, (void)file;
    for (off_t i = offset; i < 3; i++, used += need) {
        struct stat status;
        attributes(fuse_req_userdata(request), i < 2 ? FUSE_ROOT_ID : VOLUME_INODE, &status);
        need = fuse_add_direntry(request, payload + used, size - used, names[i], &status, i + 1);
        if (need > size - used)
            break;
    }
    fuse_reply_buf(request, payload, used);
}

static void on_statfs(fuse_req_t request, fuse_ino_t inode)
{
    (void)inode;
    struct statvfs status = {.f_bsize = PAGE_BYTES, .f_frsize = PAGE_BYTES, .f_files = 1, .f_namemax = 255};
    status.f_blocks = volume_bytes(fuse_req_userdata(request)) / PAGE_BYTES;
    fuse_reply_statfs(request, &status);
}

/* ---- Operations: data --------------------------------------------------------------------------------------------- */

static void on_open(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
    (void)inode; /* only files are opened so, and there is one */
    /* The only guard of read-only, for all that is done through a descriptor: no one can be had for writing. */
    const struct rl_fuse *fuse = fuse_req_userdata(request);
    bool refused = fuse->read_only && (file->flags & O_ACCMODE) != O_RDONLY;
    /* The kernel's own struct, because libfuse before 3.15 cannot say that writes may run in parallel. */
    struct fuse_open_out reply = {.open_flags = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES | FOPEN_NOFLUSH};
    if (refused)
        reply_code(request, -EROFS);
    else
        fuse_reply_buf(request, (const char *)&reply, sizeof reply);
}

static void on_read(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *file)
{
    struct rl_fuse *fuse = fuse_req_userdata(request);
    size_t length = inside(fuse, size < TRANSFER_BYTES ? size : TRANSFER_BYTES, offset); /* max_read is that, so it is never more */
    (void)inode, (void)file;
    int rc = length ? fuse->ops.pread(fuse->handle, payload, length, (uint64_t)offset) : 0;
    if (rc < 0)
        reply_code(request, rc);
    else
        fuse_reply_buf(request, payload, length);
}

static void on_write(fuse_req_t request, fuse_ino_t inode, const char *data, size_t size, off_t offset, struct fuse_file_info *file)
{
    struct rl_fuse *fuse = fuse_req_userdata(request);
    size_t length = inside(fuse, size, offset);
    int rc = -ENOSPC; /* as a block device: EFBIG would speak of a limit on files, there is just no more room */
    (void)inode;
    if (length) /* our copy: nobody can change it */
        rc = fuse->ops.pwrite(fuse->handle, data, length, (uint64_t)offset, RL_BUFFER_STABLE);
    if (rc >= 0 && (file->flags & O_DSYNC)) /* part of O_SYNC; on a direct file the kernel leaves this to us */
        rc = fuse->ops.flush(fuse->handle);
    if (rc < 0)
        reply_code(request, rc);
    else
        fuse_reply_write(request, length);
}

static void on_fsync(fuse_req_t request, fuse_ino_t inode, int datasync, struct fuse_file_info *file)
{
    struct rl_fuse *fuse = fuse_req_userdata(request);
    (void)inode, (void)datasync, (void)file;
    reply_code(request, fuse->read_only ? 0 : fuse->ops.flush(fuse->handle));
}

static void on_fallocate(fuse_req_t request, fuse_ino_t inode, int mode, off_t offset, off_t length, struct fuse_file_info *file)
{
    struct rl_fuse *fuse = fuse_req_userdata(request);
    uint64_t bytes = inside(fuse, (uint64_t)length, offset); /* past the end there is nothing to zero, as in any file */
    int rc = 0;
    (void)inode;
    if (mode != (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE) && mode != (FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE))
        rc = -EOPNOTSUPP;
    else if (bytes)
        rc = fuse->ops.zero(fuse->handle, bytes, (uint64_t)offset, mode & FALLOC_FL_PUNCH_HOLE ? RL_ZERO_DISCARD : 0);
    if (rc >= 0 && (file->flags & O_DSYNC))
        rc = fuse->ops.flush(fuse->handle);
    reply_code(request, rc);
}

/* Not here, so libfuse's default: flush (closing promises nothing), opendir, release, access (default_permissions), forget, xattrs. */
static const struct fuse_lowlevel_ops operations = {.init = on_init,
                                                    .lookup = on_lookup,
                                                    .getattr = on_getattr,
                                                    .setattr = on_setattr,
                                                    .readdir = on_readdir,
                                                    .statfs = on_statfs,
                                                    .open = on_open,
                                                    .read = on_read,
                                                    .write = on_write,
                                                    .fsync = on_fsync,
                                                    .fsyncdir = on_fsync,
                                                    .fallocate = on_fallocate};

/* ---- The connection ----------------------------------------------------------------------------------------------- */

/* libfuse writes every reply through this. ENOENT is the one failure that it takes without a word to stderr; the kernel says it itself when
 * the request was given up meanwhile. */
static ssize_t connection_writev(int fd, struct iovec *parts, int count, void *userdata)
{
    (void)userdata;
    ssize_t rc = writev(fd, parts, count);
    if (rc < 0)
        errno = ENOENT;
    return rc;
}

/* libfuse demands one; ours is in serve(). */
static ssize_t connection_read(int fd, void *buffer, size_t size, void *userdata)
{
    (void)userdata;
    return read(fd, buffer, size);
}

static const struct fuse_custom_io connection = {.writev = connection_writev, .read = connection_read};

/* Makes the kernel queue a request that one thread will read: an answer of 0 bytes that it has cached of `volume`. Works on a mount that is
 * detached but not dead, needs neither path nor privilege; but the kernel must know the inode, see hold_volume(). On a dead mount it
 * fails, and there every read fails, too. Not libfuse's function: that would keep a record of each, and we do not look at the answers. */
static void wake_one(const struct rl_fuse *fuse)
{
    struct {
        struct fuse_out_header header;
        struct fuse_notify_retrieve_out retrieve;
    } message = {{.len = sizeof message, .error = FUSE_NOTIFY_RETRIEVE}, {.nodeid = VOLUME_INODE}};
    (void)!write(fuse->fd, &message, sizeof message);
}

/* ---- Threads ------------------------------------------------------------------------------------------------------ */

/* All read the one descriptor: the kernel wakes a single reader for a request. Clones of it (FUSE_DEV_IOC_CLONE) served no more requests
 * when measured (bench/mount.py's load, 2 cores). */
static void *work(void *argument);

/* One more, unless there are enough. Signals are blocked in the caller and so in the new one. */
static void start_thread(struct rl_fuse *fuse)
{
    pthread_mutex_lock(&fuse->thread_lock);
    if (fuse->thread_count < THREADS_MAX - 1 && !atomic_load(&fuse->stopping)) {
        atomic_fetch_add(&fuse->idle, 1);
        if (pthread_create(&fuse->threads[fuse->thread_count], NULL, work, fuse) == 0)
            fuse->thread_count++;
        else
            atomic_fetch_sub(&fuse->idle, 1); /* those that are there will do */
    }
    pthread_mutex_unlock(&fuse->thread_lock);
}

/* Receives and answers until told to stop or the connection ends. The caller counts as idle. */
static void serve(struct rl_fuse *fuse, char *start)
{
    while (!atomic_load(&fuse->stopping) && !fuse_session_exited(fuse->session)) {
        ssize_t got = read(fuse->fd, start, BUFFER_BYTES - RECEIVE_OFFSET);
        if (got < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT))
            continue; /* ENOENT: the request was given up before we had it */
        if (got < 0 && errno != ENODEV && errno != ECONNABORTED)
            atomic_store(&fuse->error, -errno);
        if (got < 0)
            break;
        if (((const struct fuse_in_header *)start)->opcode == FUSE_NOTIFY_REPLY)
            continue; /* a wake-up; libfuse would lose the memory of one that it did not ask for */
        if (atomic_fetch_sub(&fuse->idle, 1) == 1)
            start_thread(fuse);
        struct fuse_buf request = {.size = (size_t)got, .mem = start};
        fuse_session_process_buf(fuse->session, &request);
        atomic_fetch_add(&fuse->idle, 1);
    }
    atomic_fetch_sub(&fuse->idle, 1);
    atomic_store(&fuse->stopping, 1);
    wake_one(fuse); /* F2 */
}

/* A serving thread's life, with a buffer of its own. NULL, or `argument` where there was no memory for it: then the others go on. */
static void *work(void *argument)
{
    struct rl_fuse *fuse = argument;
    char *buffer = mmap(NULL, BUFFER_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED) {
        atomic_fetch_sub(&fuse->idle, 1);
        return argument;
    }
    payload = buffer + PAGE_BYTES;
    serve(fuse, buffer + RECEIVE_OFFSET);
    munmap(buffer, BUFFER_BYTES);
    return NULL;
}

/* Serves until the end, on the calling thread too; joins the others. */
static int serve_all(struct rl_fuse *fuse)
{
    atomic_store(&fuse->idle, 1);
    int rc = work(fuse) ? -ENOMEM : 0;
    atomic_store(&fuse->stopping, 1);
    pthread_mutex_lock(&fuse->thread_lock); /* nobody starts another one from here on */
    unsigned count = fuse->thread_count;
    pthread_mutex_unlock(&fuse->thread_lock);
    for (unsigned i = 0; i < count; i++)
        pthread_join(fuse->threads[i], NULL);
    return rc < 0 ? rc : atomic_load(&fuse->error);
}

/* ---- Protection from our own write-back --------------------------------------------------------------------------- */

/* Locking what is to come makes allocations fail where a limit holds: so only where none does. */
static bool may_lock_all(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur == RLIM_INFINITY)
        return true;
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{0}};
    return syscall(SYS_capget, &header, data) == 0 && (data[CAP_TO_INDEX(CAP_IPC_LOCK)].effective & CAP_TO_MASK(CAP_IPC_LOCK));
}

/* Of the calling thread, inherited by those that it starts; memory is the process's. */
static void protect(struct rl_fuse *fuse)
{
    int bits = 0;
    if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0)
        bits |= RL_FUSE_IO_FLUSHER;
    /* MCL_ONFAULT: what was never touched (thread stacks, arenas) takes no memory. */
    if (may_lock_all() && mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0)
        bits |= RL_FUSE_MEMORY_LOCKED;
    atomic_store(&fuse->protection, bits);
}

/* All that are not raised by the thread's own mistakes: those must reach faulthandler and the sanitizers. */
static void block_signals(sigset_t *before)
{
    sigset_t all;
    sigfillset(&all);
    for (const int *fault = (const int[]){SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, 0}; *fault; fault++)
        sigdelset(&all, *fault);
    pthread_sigmask(SIG_BLOCK, &all, before);
}

/* ---- Mounting ----------------------------------------------------------------------------------------------------- */

/* The descriptor moved above the numbers that are given out to fusermount3; -1 if there are no more. */
static int above(int fd)
{
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, 10);
    close(fd);
    return moved;
}

/* Runs fusermount3; what it says goes to `text`. comm_fd, if not -1, becomes its _FUSE_COMMFD. Returns its exit status, or -errno. Not
 * fork(): this process has many threads. */
static int run_fusermount(char *const *arguments, int comm_fd, char *text, size_t text_bytes)
{
    static char *const environment[] = {"_FUSE_COMMFD=3", "PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C", NULL};
    int ends[2], status = 0;
    text[0] = 0;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    int say = above(ends[1]);
    if (say < 0) {
        close(ends[0]);
        return -EMFILE;
    }
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDWR, 0);
    posix_spawn_file_actions_adddup2(&actions, say, 1);
    posix_spawn_file_actions_adddup2(&actions, say, 2);
    if (comm_fd >= 0)
        posix_spawn_file_actions_adddup2(&actions, comm_fd, 3);
    pid_t child = -1;
    int rc = posix_spawnp(&child, arguments[0], &actions, NULL, arguments, environment);
    posix_spawn_file_actions_destroy(&actions);
    close(say);
    ssize_t got = 0;
    for (size_t used = 0; rc == 0 && (got = read(ends[0], text + used, text_bytes - 1 - used)) > 0;) {
        used += (size_t)got;
        text[used] = 0;
    }
    close(ends[0]);
    text[strcspn(text, "\n")] = 0;
    if (rc != 0)
        return -rc;
    while ((got = waitpid(child, &status, 0)) < 0 && errno == EINTR)
        ;
    return got == child && WIFEXITED(status) ? WEXITSTATUS(status) : got < 0 ? 0 : 1; /* < 0: SIGCHLD is ignored here, nobody can tell */
}

/* The descriptor that fusermount3 has sent, or -1. */
static int receive_descriptor(int socket_fd)
{
    char byte = 0;
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t got = recvmsg(socket_fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    struct cmsghdr *header = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (!header || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
        return -1;
    int fd = -1;
    memcpy(&fd, CMSG_DATA(header), sizeof fd);
    return fd;
}

/* Through fusermount3: the way of ordinary users. Returns the descriptor or -errno. */
static int mount_by_helper(const struct rl_fuse *fuse, const char *fsname)
{
    char name[256], options[512], text[256] = "";
    size_t used = 0;
    for (const char *c = fsname; *c && used + 2 < sizeof name; c++) {
        if (*c == ',' || *c == '\\')
            name[used++] = '\\';
        name[used++] = *c;
    }
    name[used] = 0;
    snprintf(options, sizeof options,
             "%s,nosuid,nodev,noexec,default_permissions%s,max_read=" STRING_OF(TRANSFER_BYTES) ",subtype=raidlib,fsname=%s",
             fuse->read_only ? "ro" : "rw", fuse->allow_other ? ",allow_other" : "", name);
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        return fail(errno, "socketpair: %s", strerror(errno));
    int theirs = above(ends[1]), rc = -EMFILE;
    char *const arguments[] = {"fusermount3", "-o", options, "--", fuse->mountpoint, NULL};
    if (theirs >= 0) {
        rc = run_fusermount(arguments, theirs, text, sizeof text);
        close(theirs);
    }
    int fd = rc == 0 ? receive_descriptor(ends[0]) : -1;
    close(ends[0]);
    if (fd >= 0)
        return fd;
    if (rc < 0)
        return fail(-rc, "cannot run fusermount3 (package fuse3): %s", strerror(-rc));
    return fail(EPERM, "%s", text[0] ? text : "fusermount3 failed and did not say why");
}

/* By mount(2). Returns the descriptor or -errno; -EPERM: not for us, try the helper. */
static int mount_by_kernel(const struct rl_fuse *fuse, const char *fsname, mode_t root_mode)
{
    char options[256];
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return fail(errno, "/dev/fuse: %s", strerror(errno));
    snprintf(options, sizeof options, "fd=%d,rootmode=%o,user_id=%u,group_id=%u,default_permissions%s,max_read=" STRING_OF(TRANSFER_BYTES),
             fd, root_mode & S_IFMT, fuse->uid, fuse->gid, fuse->allow_other ? ",allow_other" : "");
    unsigned long how = MS_NOSUID | MS_NODEV | MS_NOEXEC | (fuse->read_only ? MS_RDONLY : 0);
    int rc = mount(fsname, fuse->mountpoint, "fuse.raidlib", how, options);
    if (rc == 0)
        return fd;
    rc = fail(errno, "cannot mount on %s: %s", fuse->mountpoint, strerror(errno));
    close(fd);
    return rc;
}

/* What lies at the mount point, asked without a request to the server (which may be dead, or ourselves). Zeros: it cannot be said. */
static struct place place_now(const struct rl_fuse *fuse)
{
    struct statx status = {0};
    int rc = statx(AT_FDCWD, fuse->mountpoint, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT | AT_SYMLINK_NOFOLLOW,
                   STATX_MNT_ID | STATX_MNT_ID_UNIQUE, &status);
    return rc < 0 ? (struct place){0} : (struct place){status.stx_dev_major, status.stx_dev_minor, status.stx_mnt_id};
}

static bool is_at_place(const struct rl_fuse *fuse)
{
    struct place now = place_now(fuse);
    return memcmp(&now, &fuse->place, sizeof now) == 0;
}

/* A descriptor of `volume` without opening it, so that the kernel knows the inode from now on; -1 where the mount is not at its place. If a
 * request is needed for it, then nobody has `volume` open, and no thread can be stuck in the store. Without locks, because it waits for
 * our own threads. */
static int hold_volume(const struct rl_fuse *fuse)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/" VOLUME_NAME, fuse->mountpoint);
    return is_at_place(fuse) ? open(path, O_PATH | O_CLOEXEC) : -1;
}

/* Takes the mount out of the tree if it is still there (F4). Files open on it keep it alive in the dark. Under mount_lock. */
static void detach(struct rl_fuse *fuse)
{
    char text[256];
    bool there = fuse->mounted && is_at_place(fuse);
    fuse->mounted = false;
    if (!there || umount2(fuse->mountpoint, MNT_DETACH | UMOUNT_NOFOLLOW) == 0)
        return;
    char *const arguments[] = {"fusermount3", "-u", "-q", "-z", "--", fuse->mountpoint, NULL};
    run_fusermount(arguments, -1, text, sizeof text);
}

/* ---- The API ------------------------------------------------------------------------------------------------------ */

static struct fuse_session *new_session(struct rl_fuse *fuse)
{
    /* libfuse does not mount, but it compares this with what on_init() says. */
    struct fuse_args arguments = FUSE_ARGS_INIT(0, NULL);
    struct fuse_session *session = NULL;
    fuse_set_log_func(keep_log);
    if (fuse_opt_add_arg(&arguments, "raidlib") == 0 && fuse_opt_add_arg(&arguments, "-omax_read=" STRING_OF(TRANSFER_BYTES)) == 0)
        session = fuse_session_new(&arguments, &operations, sizeof operations, fuse);
    fuse_opt_free_args(&arguments);
    return session;
}

static void release(struct rl_fuse *fuse)
{
    if (fuse->session)
        fuse_session_destroy(fuse->session);
    if (fuse->hold >= 0)
        close(fuse->hold);
    free(fuse->mountpoint);
    free(fuse);
}

/* Mount point, session, mount, in this order: what fails early leaves nothing behind. */
static int bring_up(struct rl_fuse *fuse, const char *mountpoint, const char *fsname)
{
    struct stat status;
    fuse->mountpoint = realpath(mountpoint, NULL);
    if (!fuse->mountpoint || stat(fuse->mountpoint, &status) < 0)
        return fail(errno, "mount point %s: %s%s", mountpoint, strerror(errno),
                    errno == ENOTCONN ? " (a server that died left its mount: fusermount3 -uz)" : "");
    if (!S_ISDIR(status.st_mode))
        return fail(ENOTDIR, "mount point %s is not a directory", mountpoint);
    fuse->session = new_session(fuse);
    if (!fuse->session)
        return -ENOMEM; /* the text is libfuse's */
    fuse->fd = mount_by_kernel(fuse, fsname, status.st_mode);
    if (fuse->fd == -EPERM || fuse->fd == -EACCES)
        fuse->fd = mount_by_helper(fuse, fsname);
    if (fuse->fd < 0)
        return fuse->fd;
    fuse->place = place_now(fuse);
    fuse->mounted = true;
    int rc = fuse_session_custom_io(fuse->session, &connection, fuse->fd); /* takes the descriptor */
    if (rc < 0) {
        detach(fuse);
        close(fuse->fd);
    }
    return rc;
}

int rl_fuse_new(void *handle, const void *ops, const char *mountpoint, const char *fsname, uint32_t flags, rl_fuse **out)
{
    const struct rl_block_ops *table = ops;
    *out = NULL;
    if (flags & ~(uint32_t)(RL_FUSE_READ_ONLY | RL_FUSE_ALLOW_OTHER))
        return fail(EINVAL, "unknown flags %#x", flags);
    if (table->size_of < sizeof *table || table->version != 2)
        return fail(EINVAL, "block operations of version %u and %u bytes; version 2 and %zu bytes are known", table->version,
                    table->size_of, sizeof *table);
    struct rl_fuse *fuse = calloc(1, sizeof *fuse);
    if (!fuse)
        return fail(ENOMEM, "no memory");
    *fuse = (struct rl_fuse){.handle = handle,
                             .ops = *table,
                             .uid = getuid(),
                             .gid = getgid(),
                             .pid = getpid(),
                             .hold = -1,
                             .read_only = flags & RL_FUSE_READ_ONLY,
                             .allow_other = flags & RL_FUSE_ALLOW_OTHER,
                             .protection = -EAGAIN,
                             .mount_lock = PTHREAD_MUTEX_INITIALIZER,
                             .thread_lock = PTHREAD_MUTEX_INITIALIZER};
    clock_gettime(CLOCK_REALTIME, &fuse->born);
    int rc = bring_up(fuse, mountpoint, fsname);
    if (rc < 0)
        release(fuse);
    else
        *out = fuse;
    return rc;
}

int rl_fuse_run(rl_fuse *fuse)
{
    sigset_t before;
    if (forked(fuse))
        return fail(ECHILD, "the mount belongs to process %d", (int)fuse->pid);
    pthread_mutex_lock(&fuse->mount_lock);
    int rc = fuse->running ? -EBUSY : fuse->session ? 0 : -ESHUTDOWN;
    fuse->running |= rc == 0;
    if (fuse->asked && rc == 0)
        atomic_store(&fuse->stopping, 1); /* that stop did not see us run */
    pthread_mutex_unlock(&fuse->mount_lock);
    if (rc < 0)
        return fail(-rc, rc == -EBUSY ? "the mount is being served already" : "the mount has ended");
    int flusher = prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0);
    block_signals(&before);
    protect(fuse);
    rc = serve_all(fuse);
    if (rc == 0 && fuse_session_exited(fuse->session))
        rc = -EPROTO; /* the kernel and libfuse did not come to terms */
    pthread_mutex_lock(&fuse->mount_lock);
    detach(fuse);
    fuse_session_destroy(fuse->session); /* closes the connection: what still waits for us gets ENOTCONN */
    fuse->session = NULL;
    fuse->running = false;
    pthread_mutex_unlock(&fuse->mount_lock);
    if (flusher == 0)
        prctl(PR_SET_IO_FLUSHER, 0, 0, 0, 0);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc < 0 ? fail(-rc, "the connection to the kernel ended: %s", strerror(-rc)) : 0;
}

void rl_fuse_stop(rl_fuse *fuse)
{
    if (forked(fuse))
        return;
    pthread_mutex_lock(&fuse->mount_lock);
    bool first = !fuse->asked, serving = fuse->running;
    fuse->asked = true;
    pthread_mutex_unlock(&fuse->mount_lock);
    if (!first)
        return;
    int hold = serving ? hold_volume(fuse) : -1; /* while all threads still serve */
    atomic_store(&fuse->stopping, 1);
    pthread_mutex_lock(&fuse->mount_lock);
    fuse->hold = hold;
    if (fuse->session) {
        detach(fuse);
        wake_one(fuse);
    }
    pthread_mutex_unlock(&fuse->mount_lock);
}

int rl_fuse_free(rl_fuse *fuse)
{
    if (!fuse)
        return 0;
    if (forked(fuse)) { /* locks may be held by threads that are not here */
        if (fuse->session)
            close(fuse->fd);
        fuse->session = NULL;
        return fail(ECHILD, "the mount belongs to process %d", (int)fuse->pid);
    }
    pthread_mutex_lock(&fuse->mount_lock);
    bool running = fuse->running;
    if (!running)
        detach(fuse);
    pthread_mutex_unlock(&fuse->mount_lock);
    if (running)
        return fail(EBUSY, "the mount is still being served");
    release(fuse);
    return 0;
}

int rl_fuse_protection(rl_fuse *fuse)
{
    if (forked(fuse))
        return fail(ECHILD, "the mount belongs to process %d", (int)fuse->pid);
    return atomic_load(&fuse->protection);
}
