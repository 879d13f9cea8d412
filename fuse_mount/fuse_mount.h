/* fuse_mount.h: the FUSE door: one directory with one file, `volume`, on a table of block operations. And its manual.
 *
 * WHAT IS SEEN
 *  - `volume`: ops->size() bytes, mode 0600 (0400 read-only), owned by who mounted it; the kernel checks permissions (default_permissions).
 *    st_blksize is ops->block_bytes(), 4096 at least.
 *  - Every open is direct: nothing of `volume` is kept in the page cache, so that what another door wrote is seen at once, a loop device
 *    with direct I/O passes straight through, and nothing is cached twice. Writes of many threads run in parallel. MAP_SHARED is refused
 *    by the kernel (ENODEV) on such a file, MAP_PRIVATE works.
 *  - fsync, fdatasync, and a write through a descriptor or call with O_DSYNC or O_SYNC end in ops->flush; close does not.
 *  - fallocate: PUNCH_HOLE and ZERO_RANGE (with KEEP_SIZE) are ops->zero, with and without RL_ZERO_DISCARD; other modes EOPNOTSUPP.
 *  - The end is a block device's: a read past it is short, a write across it is short, a write at or past it is ENOSPC.
 *    The size cannot be changed (EPERM), nor mode and owner (EPERM); times are accepted and forgotten.
 *
 * CONVENTIONS
 *  - Functions return 0, or -errno; the thread's last failure in words: rl_fuse_error().
 *  - Any call from any thread, but none may race rl_fuse_free() of its own handle. In a forked child every call answers -ECHILD.
 *  - No signal is handled, no output is made, descriptors are close-on-exec. libfuse's log function is replaced, for the whole process.
 *
 * The text between the two CDEF markers is what cffi compiles against.
 */
#ifndef RAIDLIB_FUSE_MOUNT_H
#define RAIDLIB_FUSE_MOUNT_H

#include <stdint.h>

/* CDEF-BEGIN */

typedef struct rl_fuse rl_fuse;

#define RL_FUSE_READ_ONLY 1
/* Other users pass the mount point; modes stay as they are. Who is not root needs user_allow_other in /etc/fuse.conf. */
#define RL_FUSE_ALLOW_OTHER 2

/* Mounts on the directory `mountpoint`, by mount(2) where that is permitted, else through fusermount3. Until rl_fuse_run() runs, whoever
 * looks into the mount waits. `ops` is a `const struct rl_block_ops *` (raidlib.h) of version 2, which is copied; `handle` must live until
 * rl_fuse_free(). The operations are called from many threads at once. `fsname` is what mount tables show as the source.
 * -EINVAL (flags, ops), -ENOTDIR, -ENOENT, -EPERM, -EACCES ...: the text says which and, where fusermount3 said something, what. */
int rl_fuse_new(void *handle, const void *ops, const char *mountpoint, const char *fsname, uint32_t flags, rl_fuse **out);

/* Serves on the calling thread and on threads that it starts and joins, until it is unmounted (by anyone) or stopped. 0, or -errno where
 * the connection broke otherwise. The serving threads block all signals (but those of their own faults). When it returns, no request is
 * answered any more, the mount is gone, and the calling thread is as it was before. Once only: -EBUSY while another thread is in it,
 * -ESHUTDOWN after. */
int rl_fuse_run(rl_fuse *fuse);

/* Ends rl_fuse_run(): detaches the mount and wakes the threads; requests that were begun are finished, and files that are still open
 * answer ENOTCONN from then on: let go of loop devices and file systems first. Returns without waiting for the end. From any thread but not
 * from a signal handler; repeated calls do nothing. */
void rl_fuse_stop(rl_fuse *fuse);

/* Unmounts if that has not happened. -EBUSY while rl_fuse_run() runs, else the handle is gone. NULL is a no-op. In a forked child: closes
 * the child's copy of the descriptor (as long as it is open, the kernel takes the server for alive), nothing else, and -ECHILD. */
int rl_fuse_free(rl_fuse *fuse);

#define RL_FUSE_IO_FLUSHER 1    /* PR_SET_IO_FLUSHER: the server's allocations never wait for write-back that waits for the server */
#define RL_FUSE_MEMORY_LOCKED 2 /* the process's memory, present and future, stays in RAM once touched (and stays so after the mount) */
/* Which of these succeeded. The first needs CAP_SYS_RESOURCE, the second CAP_IPC_LOCK or an unlimited RLIMIT_MEMLOCK (under a limit it is
 * not tried: later allocations would fail). -EAGAIN: rl_fuse_run() has not begun yet. */
int rl_fuse_protection(rl_fuse *fuse);

/* The calling thread's last failure in words, "" before the first. Valid until the thread's next call that fails. */
const char *rl_fuse_error(void);

/* CDEF-END */

#endif
