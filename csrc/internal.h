/* internal.h: what the engine's files share and nobody else sees.
 *
 * LOCK ORDER (outermost first)
 *   1. array->admin      one administrative change at a time (fail, add, sync start/stop)
 *   2. array->config     rwlock. Shared: every request and every sync window, while it uses devices and slots. Exclusive: whatever changes
 *                        them, and every superblock write.
 *   3. stripe lock       one of RL_STRIPE_LOCKS mutexes, by stripe number. At most one at a time is held by a thread.
 *      The bitmap's io comes after config as well, and is held while its pages are written; a thread holds it or a stripe lock, never both.
 *   4. array->bad_lock, events_lock, pool lock, doubt lock, the bitmap's queue lock, a lane's, a member's and a recorder's own (leaves)
 * A member may be an array: under 1 to 3 of the outer one come all of the inner one's (member_array.c, A1), never the other way round.
 */
#ifndef RAIDLIB_INTERNAL_H
#define RAIDLIB_INTERNAL_H

#include "raidlib.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Our own mistakes only; never what a disk, a peer or a user said. Stays on in release builds. */
#ifndef RL_ASSERT
#define RL_ASSERT(condition) ((condition) ? (void)0 : rl_assert_failed(#condition, __FILE__, __LINE__))
#endif
_Noreturn void rl_assert_failed(const char *condition, const char *file, int line);

#define RL_SECTOR 512u
#define RL_BUFFER_ALIGN 4096u

static inline uint64_t rl_min(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}
static inline uint64_t rl_max(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}
static inline uint64_t rl_round_down(uint64_t value, uint64_t unit)
{
    return value - value % unit;
}
static inline uint64_t rl_round_up(uint64_t value, uint64_t unit)
{
    return rl_round_down(value + unit - 1, unit);
}

/* Records rl_last_error() and returns -code. */
int rl_fail(int code, const char *call, int32_t slot, uint64_t offset, const char *format, ...) __attribute__((format(printf, 5, 6)));

/* ---- Members ------------------------------------------------------------------------------------------------------ */

/* What a kind of member must do. Requests are aligned to block_bytes in offset, length and (direct) memory: member.c sees to it.
 * -ENODEV from any of them means: the member is gone for good. */
struct rl_member_ops {
    const char *kind;
    int (*pread)(rl_member *member, void *buffer, uint64_t length, uint64_t offset, uint32_t flags);
    int (*pwrite)(rl_member *member, const void *buffer, uint64_t length, uint64_t offset);
    /* The range reads as zeros afterwards. -EOPNOTSUPP, or NULL: the caller writes zeros. flags: RL_ZERO_*. */
    int (*zero)(rl_member *member, uint64_t length, uint64_t offset, uint32_t flags);
    int (*flush)(rl_member *member);
    int (*probe)(rl_member *member);
    void (*let_go)(rl_member *member); /* the close begins, and requests may be inside: what waits must come back. May be NULL */
    void (*close)(rl_member *member);
};

struct rl_member {
    const struct rl_member_ops *ops;
    uint64_t size_bytes;
    uint32_t block_bytes;  /* requests are multiples of it */
    uint32_t memory_align; /* buffers begin at multiples of it; 1: anywhere */
    uint32_t flags;        /* RL_MEMBER_* */
    atomic_uint users;     /* arrays that have it open */
    atomic_uint inside;    /* requests, of a kind that has let_go: the close waits for them */
    atomic_bool no_room; /* as of the last probe: the file system that it lies on has next to no space left */
    bool can_hang; /* its kind may be silent for ever */
    struct lane *lane;     /* with a deadline: its queue (deadline.c); NULL: the caller's thread does its requests */
    char *name;            /* for messages */
    pthread_mutex_t trouble_lock;
    char trouble[160]; /* trouble_lock: the last failure in words */
};
/* Allocates `bytes` (a struct that begins with rl_member) for a kind of member; name NULL: the kind's. The caller fills in sizes. */
int rl_member_new(size_t bytes, const struct rl_member_ops *ops, const char *name, rl_member **out);
int rl_member_well(rl_member *member); /* a flush or probe that always succeeds */
/* Why the member failed last, in words. */
void rl_member_trouble(rl_member *member, char *out, size_t length);
/* Keeps the words of a failure (rl_last_error) for whoever will have to explain it; passes the result on. */
int rl_member_noted(rl_member *member, int rc);

/* recorder.c. begin: returns the recorded copy of `data` (or `data`, once the record is full); end must follow with the index it gave. */
#define RL_RECORD_NONE RL_MAX_SECTOR
const void *rl_recorder_begin(rl_recorder *r, uint32_t member, uint32_t op, const void *data, uint64_t length, uint64_t offset,
                              uint64_t *index);
void rl_recorder_end(rl_recorder *r, uint64_t index, int result);
void rl_recorder_attach(rl_recorder *r, int members); /* so many more use it */

/* One request to one device. The order of a device's requests and what may run beside what is decided by the callers; rl_io_run submits all and waits for all,
 * those of members with a deadline at once and beside each other, in buffers of their own. A back end with queues (io_uring) fits in behind it without a change above. */
struct rl_io {
    rl_member *member;
    void *buffer;
    uint64_t offset; /* bytes on the member */
    uint64_t length;
    uint32_t device; /* the caller's: index in the array */
    uint16_t tag; /* the caller's */
    uint8_t op; /* RL_OP_* */
    uint8_t flags; /* RL_IO_*; RL_ZERO_* */
    int result; /* 0 or -errno */
    struct ask *ask; /* deadline.c, while it is under way */
};
enum { RL_OP_READ, RL_OP_WRITE, RL_OP_ZERO, RL_OP_FLUSH, RL_OP_PROBE };
void rl_io_run(struct rl_io *ios, unsigned count);
void rl_member_do(struct rl_io *io); /* one request, on this thread */
void rl_member_free(rl_member *member); /* nobody has it any more */

/* deadline.c */
void rl_lane_submit(struct rl_io *io);
/* *waited_ns: how long the caller has waited so far for what was submitted together with it. */
void rl_lane_wait(struct rl_io *io, uint64_t *waited_ns);
void rl_lane_close(struct lane *lane);
void rl_lane_free(struct lane *lane);

/* ---- Arrays ------------------------------------------------------------------------------------------------------- */

#define RL_DEVICES_MAX 512u
#define RL_STRIPE_LOCKS 1024u
#define RL_SLICE_BYTES 131072u /* height of the piece of a stripe that is worked on at once */
#define RL_WORKSPACE_BUDGET 12582912u /* bytes in all workspaces of an array, if all their blocks are in use */
#define RL_WORKSPACES_MIN 4u
#define RL_WORKSPACES_MAX 64u
#define RL_EVENTS_MAX 256u
#define RL_FAILED_MAX 64u /* devices that one request can find dead */

/* Ranges of sectors: pairs {first, sectors}, sorted, disjoint (badblocks.c). */
struct ranges {
    uint64_t *pairs;
    uint32_t count, room;
};

struct device {
    rl_member *member; /* NULL once removed */
    struct rl_superblock sb; /* its own fields; the array-wide ones are stamped in at each commit */
    uint32_t state; /* RL_DEVICE_*; config lock */
    int32_t slot; /* config lock */
    int32_t last_slot; /* config lock: where it was before it was out, or -1 */
    _Atomic uint64_t recovered; /* sectors that are good; RL_MAX_SECTOR in sync. Written under the stripe lock of what it passes */
    uint64_t written_events; /* config exclusive: the count in the superblock that is on it */
    uint64_t durable; /* config exclusive: `recovered` as of the last flush: what a superblock may say (I5) */
    struct ranges bad, logged; /* bad_lock: blocks not to be read; what the log on the device says of them, or will once it is written */
    atomic_uint bad_count; /* of `bad`, to be looked at without the lock */
    bool log_usable; /* the device has a log that may be written */
    bool log_stale; /* bad_lock; `logged` is not on the device yet */
    _Atomic uint64_t read_errors, corrected_reads, write_errors;
    atomic_bool
        doubted; /* I11: a request found it failed, and it is not out yet. Set under config shared and doubt_lock, cleared under config exclusive */
    bool by_bitmap; /* config: REBUILDING, and above `recovered` good but for what the bitmap marks */
    bool bitmap_whole; /* B5; config exclusive: the bits that the array's bitmap has are on it */
    uint64_t bitmap_events; /* B4, B5; config exclusive: the count in the head of its bitmap; 0: none that counts */
    bool lost; /* config: gone, but the content needs it: the array has failed, and its superblocks stay as they are */
    char reason[160];
};

struct bitmap; /* bitmap.h */

/* Memory for one piece of one stripe: blocks by vector index, allocated on first use, kept with the workspace. */
struct workspace {
    struct workspace *next;
    uint64_t block_bytes;
    void *block[RL_VECTOR_MAX]; /* old content, or what was fetched */
    void *fresh[RL_PARITY_MAX]; /* new parity; stored parity in a check */
    struct rl_io io[2 * RL_VECTOR_MAX];
};

struct rl_array {
    struct rl_geometry g;
    uint32_t flags, block_bytes, safe_mode_ms;
    const rl_kernel *kernel;
    uint64_t (*clock_ns)(void *);
    uint64_t (*wall_ns)(void *);
    void *clock_context;
    const uint8_t *fork_canary; /* a page that the kernel wipes in a forked child */

    pthread_mutex_t admin;
    pthread_rwlock_t config;
    struct device *devices[RL_DEVICES_MAX]; /* config */
    uint32_t device_count; /* config */
    int32_t slot_device[RL_SLOTS_MAX]; /* config: device in the slot (in sync or rebuilding), or -1 */
    int32_t replacement[RL_SLOTS_MAX]; /* config: second device of the slot, or -1 */
    struct rl_superblock sb; /* config: the array-wide fields */
    struct bitmap *bitmap; /* B6: config; NULL: none */
    atomic_bool
        bitmap_due; /* B5: not all devices have it yet, or some have one that is none: nothing is written before a commit; set under config exclusive */
    atomic_uint uneven; /* devices that are good in part only (rebuilding, bad blocks), or more */
    pthread_rwlock_t bad_lock;
    atomic_bool commit_due; /* I1, I12: a failure or a bad block is not on the superblocks or in its log yet */
    atomic_bool active; /* the superblocks say that writes may be open; set under config exclusive */
    atomic_bool broken; /* a member that the content needs is gone */
    atomic_bool full; /* no space is left under a member: nothing is written until the service finds that there is (io.c) */
    atomic_int full_device; /* which, or -1; of the last time */
    _Atomic uint64_t full_ns; /* when that was found out last */
    _Atomic uint64_t resync; /* sectors in sync, as in resync_offset; RL_MAX_SECTOR: all */
    uint64_t resync_durable; /* config exclusive: `resync` as of the last flush */
    _Atomic uint64_t last_write_ns;
    atomic_uint open_writes; /* begun and not yet settled */
    _Atomic uint64_t mismatch_count, corrected_reads, reads, writes, read_bytes, written_bytes;
    rl_sync *sync; /* admin: the job, or NULL */
    atomic_uint users; /* members that are made of this array */

    pthread_mutex_t stripe_lock[RL_STRIPE_LOCKS];
    pthread_mutex_t doubt_lock; /* a leaf: one after the other, so that no two are doubted of which one is needed */
    atomic_uint doubted; /* devices that are */
    pthread_mutex_t pool_lock;
    pthread_cond_t pool_cond; /* a workspace came back */
    struct workspace *pool; /* pool_lock */
    unsigned workspaces_out, workspaces_max; /* pool_lock; how many may be out at once: what bounds the memory of the engine */

    pthread_mutex_t events_lock;
    pthread_cond_t events_cond; /* also wakes the service */
    struct rl_event events[RL_EVENTS_MAX];
    uint64_t event_head, event_tail; /* events_lock: next to write, next to read */
    bool stopped; /* events_lock */
    bool attention; /* events_lock: something happened that the owner may have to act on */
    uint64_t next_probe_ns, next_look_ns; /* service thread only */
};

/* One call of a user, or one window of a job: what it found dead. */
struct request {
    rl_array *a;
    uint8_t io_flags; /* RL_IO_*: how it reads */
    struct workspace *w; /* NULL until it is needed */
    unsigned failed_count;
    struct {
        uint32_t device;
        int error;
    } failed[RL_FAILED_MAX];
};

/* engine.c */
int rl_enter(const rl_array *a, const char *call);
bool rl_is_space_error(int error);
/* No lock may be held: it may wait until another one comes back. NULL: no memory. */
struct workspace *rl_workspace_get(rl_array *a);
struct workspace *rl_workspace_try(rl_array *a); /* NULL: it would have to wait */
struct workspace *rl_workspace_second(rl_array *a); /* for who has one already: never waits, or two could wait for each other */
void rl_workspace_put(rl_array *a, struct workspace *w);
void *rl_workspace_block(struct workspace *w, void **block);
void rl_event_post(rl_array *a, uint32_t kind, int32_t device, uint64_t offset, const char *text);

/* io.c: a device had no space for a write */
void rl_note_full(rl_array *a, int32_t device);
/* Writes may begin: the superblocks say active (I3), every device has the bitmap (B5). Either may have changed again once config is held. */
int rl_ensure_active(rl_array *a);
/* rl_array_pread, and how: RL_IO_* */
int rl_array_read(rl_array *a, void *buffer, uint64_t length, uint64_t offset, uint32_t io_flags);

/* devices.c */
/* A device has failed: noted in the request, and from now on doubted, if the content can do without it (I11). config lock held, either way. */
void rl_request_failed(struct request *rq, uint32_t device, int error);
/* Notes the devices that a change may have done without, so that it is not acknowledged before they are out (I1). config lock shared since the change began. */
void rl_request_doubted(struct request *rq);
/* Takes out of the array what the request found dead and records it on the survivors. No config lock may be held. 0, or -EIO where the content needs one of them. */
int rl_request_settle(struct request *rq);
/* config lock held, either way. */
int rl_device_for_read(const rl_array *a, uint32_t slot, uint64_t sector, uint64_t sectors);
/* May it be written: a device of the slot has come so far (I8)? Bad blocks may. */
bool rl_slot_open(const rl_array *a, uint32_t slot, uint64_t sector, uint64_t sectors);
bool rl_device_usable(const rl_array *a, uint32_t device, uint64_t sector, uint64_t sectors);
void rl_device_lost(rl_array *a, uint32_t device); /* config exclusive */
void rl_present_slots(const rl_array *a, int32_t without, uint8_t *present); /* in sync, by slot */
void rl_count_uneven(rl_array *a); /* config exclusive */
/* config exclusive: a replacement that is complete and flushed takes the slot, on the superblocks too; where its own cannot be written it is out. 0, or -errno as from
 * a commit. */
int rl_device_take_over(rl_array *a, uint32_t device);
/* Adds the writes of `data` to every device of the slot that holds the range (I8); how many. */
unsigned rl_slot_writes(const rl_array *a, uint32_t slot, void *data, uint64_t sector, uint64_t length, struct rl_io *ios);
/* Makes the device `index` of what the configuration says; the array is not open yet, or config is held exclusively. */
int rl_device_take(rl_array *a, const struct rl_device_config *c, uint32_t index);
/* Takes it into a running array, on the superblocks too; on failure it was never in. config exclusive */
int rl_device_join(rl_array *a, const struct rl_device_config *c, uint32_t *device);
uint64_t rl_uniform_run(const rl_array *a, uint64_t sector, uint64_t sectors);
bool rl_enough_without(const rl_array *a, int32_t device);
struct rl_io rl_device_io(const rl_array *a, uint32_t device, uint8_t op, void *buffer, uint64_t offset, uint64_t length);

/* recover.c: the steps of a recovery. Where it must go on: the lowest point that a target has reached (false: there is no target). No config lock held. */
bool rl_recovery_start(rl_array *a, uint64_t *sector);
/* Passes over what no target lacks, by the bitmap: how many sectors; if none, *end says how far they lack something. No config lock held. */
uint64_t rl_recovery_skip(rl_array *a, uint64_t sector, uint64_t total, uint64_t *end);
/* One slice from `sector` on, at most to `total`; *sectors: how much. config shared */
int rl_recover_slice(struct request *rq, struct workspace *w, uint64_t sector, uint64_t total, uint64_t *sectors);
/* Targets that are complete take their place; an original that was replaced is out. No config lock held. */
int rl_recovery_finish(rl_array *a, uint64_t total);

/* badblocks.c. Marks and clears: stripe lock held (or the range is nobody else's); sectors count from data_offset. */
#define RL_WRITE_ERRORS_MAX \
    64u /* blocks that a member may fail to write in one session; with one more it is out, if the content can do without it */
struct losses { /* of the writes of one piece: parts that failed, and which failed as a whole (valid if any failed) */
    bool hard[2 * RL_VECTOR_MAX];
    unsigned count;
    struct {
        unsigned io;
        uint64_t at, length;
    } of[RL_WRITE_ERRORS_MAX];
};
bool rl_is_medium_error(int error);
bool rl_is_unreadable(const struct request *rq, int rc); /* blocks can be neither read nor computed, and no member was lost meanwhile */
bool rl_bad_log_usable(const rl_array *a, const struct device *d);
bool rl_bad_take(rl_array *a, struct device *d, const uint64_t *pairs, uint32_t count); /* at open; false: no memory */
void rl_bad_free(struct device *d);
bool rl_bad_has(const rl_array *a, const struct device *d, uint64_t sector, uint64_t sectors);
uint64_t rl_bad_run(const rl_array *a, const struct device *d, uint64_t sector, uint64_t sectors);
bool rl_bad_mark(rl_array *a, uint32_t device, uint64_t sector, uint64_t sectors); /* false: it has no log, or that is full */
void rl_bad_clear(rl_array *a, uint32_t device, uint64_t sector, uint64_t sectors);
void rl_bad_note_durable(rl_array *a);
bool rl_bad_stale(const rl_array *a);
bool rl_bad_logged(const rl_array *a, const struct device *d); /* its log is not empty */
int rl_bad_write_log(struct device *d);
/* Counts a block that could not be written, if it was good; false: the member is to be failed for it. */
bool rl_bad_tolerable(rl_array *a, uint32_t device, uint64_t sector, uint64_t sectors);
bool rl_bad_narrow(struct request *rq, const struct rl_io *ios, unsigned index, struct losses *lost);
void rl_bad_settle_writes(struct request *rq, const struct rl_io *ios, unsigned count, const struct losses *lost);

/* bitmap.c. What the next piece of a change may touch, marked before it is written; config shared from begin to end. -errno: it cannot be marked, and must not be written. What failed is in rq. */
struct bitmap_hold {
    struct bitmap *b;
    uint64_t first, last; /* regions */
};
int rl_bitmap_begin(struct request *rq, uint64_t length, uint64_t offset, struct bitmap_hold *hold);
/* The same of a range that is given as a resync counts sectors. */
int rl_bitmap_begin_sectors(struct request *rq, uint64_t sector, uint64_t sectors, struct bitmap_hold *hold);
void rl_bitmap_end(struct bitmap_hold *hold);
/* A piece was written in part and could not be undone: parity or copies do not agree there, and a resync has to mend it. Sectors as a resync counts them. */
void rl_set_resync_back(rl_array *a, uint64_t sector, uint64_t sectors);
/* Where from `sector` on a resync has work to do, or `total`; *end: how far it is about the same region. */
uint64_t rl_bitmap_resync_next(rl_array *a, uint64_t sector, uint64_t total, uint64_t *end);
/* The resync is done with the region of that sector: it agrees now. */
void rl_bitmap_resync_passed(rl_array *a, uint64_t sector);
/* There is a bitmap: how much of a slot's device, from that member sector on and at most so much, is alike: marked, or not. config */
uint64_t rl_bitmap_run(const rl_array *a, uint32_t slot, uint64_t sector, uint64_t sectors, bool *marked);
/* B4, config exclusive: head, and where they may be wanting bits, onto a device in a slot. 0 or the device's -errno. */
int rl_bitmap_write_to(rl_array *a, uint32_t device);
int rl_bitmap_service(rl_array *a); /* ms until the next sweep */
void rl_bitmap_close(rl_array *a);

/* bitmap_admin.c; config exclusive, or not open yet */
int rl_bitmap_open(rl_array *a);
void rl_bitmap_free(rl_array *a);
/* -EINVAL: a device with that superblock has no room for the array's bitmap. */
int rl_bitmap_check_room(const rl_array *a, const char *call, const rl_member *member, const struct rl_superblock *own);
int rl_bitmap_take_former(rl_array *a, rl_member *member, const struct rl_superblock *own, const uint64_t *bad_blocks,
                          uint32_t bad_block_count, uint32_t *device);
int rl_bitmap_set(rl_array *a, uint32_t chunk_bytes, int32_t offset_sectors, uint32_t reserved_sectors);

/* metadata.c; config lock exclusive */
int rl_metadata_commit(rl_array *a);
/* A commit that begins with the superblock of `leader`, which alone decides after a crash. *led: it was written; if not, nothing else was either. */
int rl_metadata_commit_led(rl_array *a, uint32_t leader, bool *led);
int rl_metadata_set_active(rl_array *a);
int rl_metadata_set_clean(rl_array *a);
/* Whether a 0.90 superblock has entries for all devices in use and `more`. */
bool rl_fits_090(const rl_array *a, uint32_t more);
void rl_metadata_stamp(const rl_array *a, const struct device *d, struct rl_superblock *out);
/* config lock exclusive: marks it faulty in memory; rl_metadata_commit must follow */
void rl_device_out(rl_array *a, uint32_t device, const char *why);
/* config lock held, either way */
uint64_t rl_flush_devices(rl_array *a, struct request *rq);
/* config lock exclusive, all devices flushed: what was rebuilt and resynced so far may be recorded */
void rl_note_durable(rl_array *a);
/* no config lock held; exclusive on return */
uint64_t rl_lock_flushed(rl_array *a, struct request *rq);

/* mirror.c, stripe.c; config lock shared. Do the first piece of the request; return its bytes, or -errno. What failed meanwhile is in rq: to be settled. */
int64_t rl_mirror_write(struct request *rq, struct workspace *w, const void *buffer, uint64_t length, uint64_t offset, bool stable);
int64_t rl_stripe_write(struct request *rq, struct workspace *w, const void *buffer, uint64_t length, uint64_t offset, bool stable);
/* The same for zeros. -EOPNOTSUPP: no whole stripe, or no whole block, begins there; they have to be written. */
int64_t rl_mirror_zero(struct request *rq, struct workspace *w, uint64_t length, uint64_t offset, uint32_t flags);
int64_t rl_stripe_zero(struct request *rq, struct workspace *w, uint64_t length, uint64_t offset, uint32_t flags);
/* io.c: makes zeros of the ranges, by writing them where the member cannot. */
void rl_zero_run(struct rl_io *ios, unsigned count, uint32_t flags);
/* The slow ways to read one segment that lies in one chunk: from what is left, in rq->w. */
int rl_mirror_read(struct request *rq, void *buffer, uint64_t length, uint64_t offset);
int rl_stripe_read(struct request *rq, void *buffer, uint64_t length, uint64_t offset);
/* Judges the results of a piece's writes: notes what members failed, and in `lost` what single blocks did. -ENOSPC; -EIO where nothing was written, or where `bears` says that
 * the content cannot do without a block (lost->of[which]). 0: rl_bad_settle_writes is to mark them. */
typedef bool rl_bears(const rl_array *a, const void *context, const struct rl_io *ios, unsigned count, const struct losses *lost,
                      unsigned which);
int rl_judge_writes(struct request *rq, struct rl_io *ios, unsigned count, rl_bears *bears, const void *context, struct losses *lost);
/* Writes `length` good bytes over a sector that could not be read, and reads them back from the device. */
void rl_heal(struct request *rq, uint32_t device, void *good, uint64_t length, uint64_t offset);

/* A stripe as the code sees it: filled by rl_stripe_look. */
struct stripe {
    uint64_t number;
    unsigned nd, np;
    int16_t slot_of[RL_VECTOR_MAX];
    uint16_t position[RL_SLOTS_MAX];
};
void rl_stripe_look(const rl_array *a, uint64_t number, struct stripe *st);
/* Brings the blocks want[i] of [low, low + length) of the stripe into w->block[i] + at: from the member where it can be, else by the code. Stripe lock held.
 * 0; -EIO where the code does not bear what is lost. */
int rl_stripe_fetch(struct request *rq, const struct stripe *st, struct workspace *w, uint64_t low, uint64_t length, uint64_t at,
                    const uint8_t *want, uint8_t io_flags);
pthread_mutex_t *rl_stripe_lock(rl_array *a, uint64_t number);
/* The region of a level without parity that one lock covers: its number, and the array sector where it ends. */
uint64_t rl_mirror_region(const rl_array *a, uint64_t sector, uint64_t *end);
/* Of which copy a stretch is read as long as they agree: each in turn. */
#define RL_STRETCH_BYTES 1048576u
static inline unsigned rl_copy_turn(unsigned count, uint64_t offset)
{
    return (unsigned)(offset / RL_STRETCH_BYTES % count);
}
/* Reads whole blocks of one region, lock held, from a copy that is usable; block by block and mending where copies fail. */
int rl_mirror_fetch(struct request *rq, void *buffer, uint64_t length, uint64_t offset);

#endif
