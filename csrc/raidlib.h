/* raidlib.h: the contract between the engine and everything that uses it, and its manual.
 *
 * CONVENTIONS
 *  - Functions return 0 or a count, or -errno. The thread's last failure in words: rl_last_error(). errno is not part of it.
 *  - Bytes unless a name says `_sectors` (512 bytes). Fixed-width plain structs; a struct that a caller fills begins with `size_of`.
 *  - Handles are opaque. Any call from any thread, but none may race the close of its own handle.
 *  - Buffers are the caller's and are never kept after the call. Descriptors are dup'ed (close-on-exec).
 *  - No threads, no signals, no output, no global state. In a forked child every call on an array answers -ECHILD.
 *  - Vector convention, everywhere: data blocks 0..nd-1, then parity P, Q, ... (nd..nd+np-1). Names are md's.
 *
 * The text between the two CDEF markers is what cffi compiles against.
 */
#ifndef RAIDLIB_H
#define RAIDLIB_H

#include <stddef.h>
#include <stdint.h>

/* CDEF-BEGIN */

/* ---- Errors ------------------------------------------------------------------------------------------------------- */

/* The last failure of the calling thread. `slot` is -1 and `offset` 0 where they say nothing. Set by every function that returns
 * < 0, untouched by success. */
struct rl_error {
    int32_t code;    /* the -errno that was returned */
    int32_t slot;    /* the slot (or device index) concerned, or -1 */
    uint64_t offset; /* byte offset of the failed request */
    char call[32];   /* which call of this header failed */
    char text[216];  /* what was wrong, for people */
};
void rl_last_error(struct rl_error *out);

/* ---- Codes (parity.c, parity_x86.c: pure) ------------------------------------------------------------------------- */

#define RL_PARITY_MAX 6 /* parity blocks of one stripe */
#define RL_VECTOR_MAX 264 /* data and parity blocks of one stripe: 255 + 6, rounded up */

/* A set of routines for one instruction set. The portable one is the truth; the others are tested against it. */
typedef struct rl_kernel rl_kernel;

/* The kernel of that name ("portable", "ssse3", "avx2", ...), or with NULL the fastest that this CPU runs. NULL: unknown, or this
 * CPU lacks it. Static; never freed. */
const rl_kernel *rl_kernel_find(const char *name);
/* Name of the index-th kernel of the registry, NULL past the end. Whether this CPU runs it, rl_kernel_find says. */
const char *rl_kernel_name(unsigned index);
const char *rl_kernel_name_of(const rl_kernel *kernel);

/* GF(2^8), polynomial 0x11d, generator 2. */
uint8_t rl_gf_mul(uint8_t a, uint8_t b);
uint8_t rl_gf_inv(uint8_t a);  /* a != 0 */
uint8_t rl_gf_exp(unsigned e); /* 2^(e mod 255) */
uint8_t rl_gf_log(uint8_t a);  /* a != 0: e in 0..254 with 2^e = a */

/* Coefficient of data block `index` in parity `row`: row 0: 1; row 1: 2^index; row r >= 2: (1 + 2^(r-1)) / (2^-index + 2^(r-1)).
 * index < 255 for rows 0 and 1, < 251 where rows >= 2 are used. */
uint8_t rl_code_coefficient(unsigned row, unsigned index);

/* Computes the np parity blocks blocks[nd..nd+np-1] from the data blocks blocks[0..nd-1], each `length` bytes (any length; fastest where
 * length and addresses are multiples of 64). A data block that is NULL is all zeros. A parity block that is NULL is not wanted.
 * 1 <= np <= RL_PARITY_MAX. Blocks must not overlap. */
void rl_code_generate(const rl_kernel *kernel, unsigned nd, unsigned np, size_t length, void *const *blocks);

/* parity[r] ^= coefficient(r, index) * (old ^ new) for each of the np parity blocks that is not NULL. old or new may be NULL: zeros. */
void rl_code_update(const rl_kernel *kernel, unsigned index, unsigned np, size_t length, const void *old_data, const void *new_data,
                    void *const *parity);

/* Computes the `lost_count` blocks whose indices (ascending, data and parity alike) are in lost[] from the others; a lost block that is NULL is
 * lost but not wanted. Among the rest,
 * a NULL data block is all zeros and a NULL parity block is unknown and not used. Returns 0, or -EINVAL where fewer known
 * parity blocks are left than data blocks are lost, where lost_count > np, or where an index is out of range or not ascending. */
int rl_code_recover(const rl_kernel *kernel, unsigned nd, unsigned np, size_t length, void *const *blocks, unsigned lost_count,
                    const uint16_t *lost);

/* Which single block explains that the np >= 2 parities in stored[] differ from the recomputed ones in computed[]? Returns its index
 * (0..nd-1 data, nd.. parity) if one and the same does for every byte that differs, -1 if nothing differs, -2 if no single one does. No block may be NULL.
 * It knows of no empty places (DDF layouts): an answer that names one means -2. */
int rl_code_locate(unsigned nd, unsigned np, size_t length, const void *const *stored, const void *const *computed);

/* CRC-32C register update (reflected, polynomial 0x82F63B78), no inversion before or after. */
uint32_t rl_crc32c(uint32_t seed, const void *data, size_t length);

/* ---- Geometry (geometry.c: pure) ---------------------------------------------------------------------------------- */

#define RL_SLOTS_MAX 256     /* slots of one array that this engine handles */
#define RL_LEVEL_LINEAR -1  /* md's numbers; rs is our own */
#define RL_LEVEL_RS 1919
#define RL_COPIES_MAX 16

/* Where a level's data lie. Fill the first part, then rl_geometry_init() checks it and fills the second. */
struct rl_geometry {
    int32_t level;
    uint32_t layout;       /* md's number; rs: the number of parities; raid0: 1 original, 2 alternate, 0 not known */
    uint32_t chunk_sectors; /* 0 for raid1 (and allowed for linear) */
    uint32_t slots;        /* raid_disks */
    uint64_t dev_sectors;  /* of each member, used by the array (superblock `size`); not used by linear and raid0 */
    uint64_t length_sectors[RL_SLOTS_MAX]; /* linear, raid0: data of each member */
    /* filled in by rl_geometry_init */
    uint32_t parity;        /* parities in each stripe; 0: no parity level */
    uint32_t data;          /* data chunks in each stripe: slots - parity */
    uint32_t copies;        /* of each chunk: 1 but for raid1 and raid10 */
    uint32_t near_copies, far_copies, far_set; /* raid10 */
    uint32_t far_offset;    /* raid10: offset layout */
    uint64_t stride_sectors; /* raid10: distance between the far copies on a member */
    uint64_t used_sectors;  /* of each member that hold data (raid10: less than dev_sectors may be) */
    uint64_t array_sectors; /* size of the array */
};

/* One place of one array sector. */
struct rl_place {
    uint32_t slot;
    uint64_t sector; /* member sector, counted from the member's data_offset */
};

/* Returns 0, or -EINVAL with rl_last_error().text saying which number does not fit; -EOPNOTSUPP for a raid0 of unequal members whose layout is
 * not known and for raid10 layouts that map two chunks to one place. */
int rl_geometry_init(struct rl_geometry *g);

/* Where array sector `sector` lies: fills places[0..copies-1] (the data's place first) and *run with the sectors that follow it contiguously in
 * every place. Returns the number of places. sector < array_sectors. */
int rl_geometry_locate(const struct rl_geometry *g, uint64_t sector, struct rl_place *places, uint64_t *run);

/* The stripe's vector (parity levels): slot_of[i] is the slot of block i by the vector convention, data in the order of coefficients; -1 for a
 * place that holds zeros by definition (DDF layouts). position[k] = index in the vector of the stripe's k-th data chunk (in array order).
 * Returns nd, the number of data places in the vector (data, or slots for DDF layouts); parity follows at nd. */
int rl_geometry_stripe(const struct rl_geometry *g, uint64_t stripe, int16_t *slot_of, uint16_t *position);

/* The inverse for mirrored levels: which array sector has a copy at that member sector. -ENOENT: none (unused tail). */
int rl_geometry_inverse(const struct rl_geometry *g, uint32_t slot, uint64_t member_sector, uint64_t *array_sector, uint64_t *run);

/* 1 if all content can be read with exactly the slots for which present[slot] is non-zero, else 0. */
int rl_geometry_enough(const struct rl_geometry *g, const uint8_t *present);

/* 1 if slot holds parity only, in every stripe (RAID 4, parity-first/last, the -6 layouts). */
int rl_geometry_parity_only(const struct rl_geometry *g, uint32_t slot);

/* ---- Superblocks (format.c: pure) --------------------------------------------------------------------------------- */

#define RL_SB_BYTES 4096
#define RL_SB_DEVS_MAX 1920
#define RL_SB90_DISKS 27
#define RL_MD_MAGIC 0xa92b4efc
#define RL_RS_MAGIC 0x31737272 /* "rrs1": md's shape, but no kernel takes it */
#define RL_MAX_SECTOR 0xffffffffffffffff

#define RL_ROLE_SPARE 0xffff
#define RL_ROLE_FAULTY 0xfffe
#define RL_ROLE_JOURNAL 0xfffd
#define RL_ROLE_MAX 0xff00 /* regular roles are below */

#define RL_FEATURE_BITMAP 1
#define RL_FEATURE_RECOVERY 2
#define RL_FEATURE_RESHAPE 4
#define RL_FEATURE_BAD_BLOCKS 8
#define RL_FEATURE_REPLACEMENT 16
#define RL_FEATURE_BACKWARDS 32
#define RL_FEATURE_NEW_OFFSET 64
#define RL_FEATURE_RECOVERY_BITMAP 128
#define RL_FEATURE_CLUSTERED 256
#define RL_FEATURE_JOURNAL 512
#define RL_FEATURE_PPL 1024
#define RL_FEATURE_MULTIPLE_PPL 2048
#define RL_FEATURE_RAID0_LAYOUT 4096
#define RL_FEATURES_KNOWN 8191

/* One disk descriptor of a 0.90 superblock. */
struct rl_sb90_disk {
    uint32_t number, major, minor, raid_disk, state; /* state: bit 0 faulty, 1 active, 2 sync, 3 removed, 9 write-mostly, 10 failfast */
};

/* A superblock of any version, decoded. Fields a version lacks are 0. md-format.md 1.2, 1.11. */
struct rl_superblock {
    uint32_t version; /* 90, 100, 101, 102: 0.90, 1.0, 1.1, 1.2 */
    uint32_t magic;   /* RL_MD_MAGIC or RL_RS_MAGIC */
    uint32_t feature_map; /* 0.90: RL_FEATURE_BITMAP and RL_FEATURE_RESHAPE are derived */
    uint8_t set_uuid[16]; /* 0.90: the four words as mdadm prints them, big-endian each */
    char set_name[36];    /* NUL-terminated */
    uint64_t ctime_s, utime_s;
    uint32_t ctime_us, utime_us;
    int32_t level;
    uint32_t layout;
    uint64_t size_sectors;
    uint32_t chunk_sectors;
    uint32_t raid_disks;
    int32_t bitmap_offset; /* sectors from the superblock; valid with RL_FEATURE_BITMAP */
    int32_t ppl_offset;    /* sectors from the superblock; valid with a PPL feature */
    uint32_t ppl_sectors;
    int32_t new_level, delta_disks;
    uint32_t new_layout, new_chunk_sectors;
    int32_t new_offset;
    uint64_t reshape_position;
    uint64_t data_offset, data_size, super_offset;
    uint64_t recovery_offset; /* RL_MAX_SECTOR unless RL_FEATURE_RECOVERY (or, a journal, its tail) */
    uint32_t dev_number, corrected_reads;
    uint8_t device_uuid[16];
    uint8_t devflags; /* bit 0 write-mostly, bit 1 failfast */
    uint8_t bblog_shift;
    uint16_t bblog_sectors;
    int32_t bblog_offset;
    uint64_t events;
    uint64_t resync_offset; /* RL_MAX_SECTOR: clean */
    uint32_t checksum;      /* as stored (encode computes it anew) */
    uint32_t logical_block_bytes;
    uint32_t max_dev;
    uint16_t dev_roles[RL_SB_DEVS_MAX]; /* by dev_number; 0.90: made from the descriptors */
    /* 0.90 only */
    uint32_t patch_version, md_minor, gvalid_words, state;
    struct rl_sb90_disk disks[RL_SB90_DISKS], this_disk;
};

/* Sector at which a superblock of that version lies on a member of that size. RL_MAX_SECTOR if the member is too small. */
uint64_t rl_superblock_sector(uint32_t version, uint64_t member_sectors);

/* Decodes the RL_SB_BYTES of `block`, read at sector `at_sector` of a member of `member_sectors`, as a superblock of `version`.
 * 0; -ENOENT no such superblock here (other magic, or a super_offset of another place); -EBADMSG wrong checksum; -EPROTONOSUPPORT a version, byte order or
 * feature unknown to md; -EINVAL a field out of its range. The text names the field. Hostile input is safe; *out is undefined after a failure. dev_roles past
 * max_dev are RL_ROLE_SPARE. */
int rl_superblock_decode(const void *block, uint32_t version, uint64_t at_sector, uint64_t member_sectors, struct rl_superblock *out);

/* The RL_SB_BYTES to write at out->super_offset, checksum included. 0.90: `disks` and `this_disk` decide. */
void rl_superblock_encode(const struct rl_superblock *sb, void *block);

/* Role of the member in its own superblock: dev_roles[dev_number], or RL_ROLE_SPARE. */
uint16_t rl_superblock_role(const struct rl_superblock *sb);

/* A bad-block log of `length` bytes -> entries {first sector, sectors} with absolute member sectors (md-format.md 1.9). Returns the number of entries
 * (at most `max`), or -EINVAL for a malformed one. pairs holds 2 * max numbers. */
int rl_badblocks_decode(const void *log, size_t length, unsigned shift, uint64_t *pairs, unsigned max);
#define RL_BADBLOCKS_BYTES 4096 /* of a log at most */
/* The inverse: `count` sorted, disjoint pairs {first sector, sectors}, in whole units, as the `length` bytes of a log, long ranges as several entries. Returns the number
 * of entries, which with log NULL is all that it does; -ENOSPC if they do not fit, -EINVAL for a range that no entry can name. */
int rl_badblocks_encode(const uint64_t *pairs, unsigned count, unsigned shift, void *log, size_t length);

/* ---- Write-intent bitmaps (bitmap_format.c: pure) ------------------------------------------------------------------ */

#define RL_BITMAP_HEAD_BYTES 256 /* of a bitmap's superblock; the bits follow it, bit i in byte i / 8, mask 1 << i % 8 */
#define RL_BITMAP_STALE 2 /* state: the bits say nothing; all count as set */
#define RL_BITMAP_WRITE_ERROR 4
#define RL_BITMAP_CHUNK_MIN 4096 /* bytes; what is made here */

/* A bitmap's superblock, decoded. md-format.md 3.1. */
struct rl_bitmap_superblock {
    uint32_t version; /* 4; or 3, the same on a little-endian host */
    uint8_t set_uuid[16]; /* as in rl_superblock, in the byte order of a 1.x one: rl_bitmap_uuid */
    uint64_t events, events_cleared;
    uint64_t sync_sectors; /* what it covers: sectors of each member; raid10: of the array */
    uint32_t state, chunk_bytes, daemon_sleep_s, write_behind, sectors_reserved, nodes;
};

/* Decodes RL_BITMAP_HEAD_BYTES. -ENOENT: no bitmap is there; -EPROTONOSUPPORT: one of a clustered or lockless kind, or of a version unknown to md; -EINVAL: a field out of its range.
 * The text names it. Hostile input is safe. */
int rl_bitmap_decode(const void *head, struct rl_bitmap_superblock *out);
void rl_bitmap_encode(const struct rl_bitmap_superblock *sb, void *head);
/* The UUID that the bitmap of an array with that superblock bears: 0.90 stores its four words the other way round. */
void rl_bitmap_uuid(const struct rl_superblock *sb, uint8_t *uuid);
/* Bits that cover so many sectors, and the bytes on the member, head included, in whole 4096. */
uint64_t rl_bitmap_bits(uint64_t sync_sectors, uint32_t chunk_bytes);
uint64_t rl_bitmap_bytes(uint64_t sync_sectors, uint32_t chunk_bytes);
/* The smallest chunk with which a bitmap fits into so many sectors, as mdadm finds it (md-format.md 3.3). */
uint64_t rl_bitmap_chunk_min(uint64_t sync_sectors, uint64_t room_sectors);

/* ---- Members (member.c) ------------------------------------------------------------------------------------------- */

typedef struct rl_member rl_member;

#define RL_MEMBER_READ_ONLY 1
#define RL_MEMBER_DIRECT 2 /* the descriptor was opened with O_DIRECT: requests are aligned to block_bytes, memory too */

/* A member on a file or block device. `path` is remembered for messages and for the heartbeat (may be NULL). Dead, with -ENODEV from
 * every call, once the file was truncated, unlinked or replaced at its path. */
int rl_member_open_fd(int fd, const char *path, uint32_t flags, rl_member **out);
/* A member in memory, zero-filled, sparse. */
int rl_member_open_memory(uint64_t size_bytes, rl_member **out);
/* A second member with the content that a member in memory has at this moment. They share memory until one of them writes, page by page; either may be closed
 * first. Any thread, beside I/O. -EINVAL for a member of another kind. */
int rl_member_fork(rl_member *member, rl_member **out);

/* A member implemented by the caller. pread and pwrite transfer all of length or fail with -errno; flush makes what was written
 * durable. Called from any thread. The engine copies `ops`; `context` must live until close. */
struct rl_member_callbacks {
    uint32_t size_of;
    int (*pread)(void *context, void *buffer, uint64_t length, uint64_t offset);
    int (*pwrite)(void *context, const void *buffer, uint64_t length, uint64_t offset);
    int (*flush)(void *context);
};
int rl_member_open_callbacks(const struct rl_member_callbacks *callbacks, void *context, uint64_t size_bytes, uint32_t block_bytes,
                             const char *name, rl_member **out);

typedef struct rl_array rl_array;
/* An open array as a member: its content. The array is borrowed and cannot be closed before the member (member_array.c has the rules). Read-only if the array is. */
int rl_member_open_array(rl_array *inner, const char *name, rl_member **out);

/* 1 if requests to it may be silent for ever: callbacks, block devices, files on a network or FUSE file system. (The kernel ends requests to its own disks.) */
int rl_member_can_hang(const rl_member *member);
/* Gives the member a deadline, before its first request: its requests are then done by threads that the owner lends (rl_member_serve, exactly `threads` times), in
 * memory of the engine's own, and no caller waits for one longer than deadline_ms. A member that misses it is dead (-ENODEV, for ever) and fenced: its unfinished
 * requests are parked until they end, and what they bring then reaches nobody. Later calls change the deadline alone. */
int rl_member_set_deadline(rl_member *member, uint32_t deadline_ms, unsigned threads);
/* Lends the calling thread to a member with a deadline, until it is closed. The last thread to come back frees the member. */
int rl_member_serve(rl_member *member);
/* Requests that have missed the deadline and have not ended. Until it is 0 what lies behind the member must not be used by another one. */
unsigned rl_member_parked(const rl_member *member);

/* -EBUSY while an array uses it. NULL is a harmless no-op. */
int rl_member_close(rl_member *member);
/* In a forked child, instead of closing it: its copy of the descriptor goes, with which it would keep the file locked when its parent has ended. The handle is of
 * no more use there. */
void rl_member_forked(rl_member *member);
uint64_t rl_member_size(const rl_member *member);
uint32_t rl_member_block_bytes(const rl_member *member);
#define RL_IO_DEVICE 1 /* read what the device holds, not what the page cache does */
/* Whole request or failure. Any offset and length inside the member; a request past its end is -EINVAL. */
int rl_member_pread(rl_member *member, void *buffer, uint64_t length, uint64_t offset, uint32_t flags);
int rl_member_pwrite(rl_member *member, const void *buffer, uint64_t length, uint64_t offset);
/* The range, whole blocks, reads as zeros afterwards. -EOPNOTSUPP where that would take writing them. */
#define RL_ZERO_DISCARD 1 /* its space may be given back; else it is kept */
int rl_member_zero(rl_member *member, uint64_t length, uint64_t offset, uint32_t flags);
int rl_member_flush(rl_member *member);
/* The heartbeat: 0, or -ENODEV with the reason in words if the member is gone. */
int rl_member_probe(rl_member *member);

/* ---- Faults and records (member_fault.c, recorder.c) -------------------------------------------------------------- */

/* Every write and flush that reaches the members it is attached to, in order, with the bytes. */
typedef struct rl_recorder rl_recorder;
#define RL_RECORD_WRITE 1
#define RL_RECORD_FLUSH 2
/* `begun` and `ended` are of one sequence for all members: what was begun after another request had ended is ordered by it; of what overlaps a crash may leave any part. */
struct rl_record {
    uint64_t begun, ended; /* ended 0: still under way */
    uint64_t offset, length; /* on the member */
    uint32_t member; /* its number, as given to rl_member_open_fault */
    uint32_t op; /* RL_RECORD_* */
    int32_t result; /* 0 or -errno: the member's answer */
};
/* Keeps at most about limit_bytes. What no longer fits is not kept: requests go on, the record ends there, and rl_recorder_count says so. */
int rl_recorder_new(uint64_t limit_bytes, rl_recorder **out);
/* -EBUSY while a member is attached. NULL is a no-op. */
int rl_recorder_free(rl_recorder *recorder);
/* Forgets all. -EBUSY while a request is under way. The sequence goes on. */
int rl_recorder_clear(rl_recorder *recorder);
/* How many entries, in the order in which they began. -ENOBUFS: it was full, and the record is not whole. */
int64_t rl_recorder_count(rl_recorder *recorder);
/* These three also of a record that is not whole; not beside rl_recorder_clear. */
int rl_recorder_get(rl_recorder *recorder, uint64_t index, struct rl_record *out);
/* Of a write's data, `length` bytes from `first` on: into a buffer, or onto the same place of another member. */
int rl_recorder_data(rl_recorder *recorder, uint64_t index, void *buffer, uint64_t length, uint64_t first);
int rl_recorder_apply(rl_recorder *recorder, uint64_t index, rl_member *to, uint64_t length, uint64_t first);

/* A member over another one, which it borrows, that does what rules say to the requests that pass. recorder: NULL, or what is to keep all that reaches the inner
 * member, under that number. Closing it lets go of what hangs in it, with -EIO. */
int rl_member_open_fault(rl_member *inner, uint64_t seed, rl_recorder *recorder, uint32_t number, rl_member **out);

#define RL_FAULT_ON_READ 1
#define RL_FAULT_ON_WRITE 2
#define RL_FAULT_ON_FLUSH 4
#define RL_FAULT_ON_PROBE 8
#define RL_FAULT_ON_ALL 15
/* What is done. `error` is what the caller is told, 0: success. */
#define RL_FAULT_ERROR 1 /* nothing is done. error > 0 */
#define RL_FAULT_SHORT 2 /* of a read or write, the first `bytes`. error > 0 */
#define RL_FAULT_DELAY 3 /* it is done delay_ms later */
#define RL_FAULT_HANG 4 /* it is done once rl_fault_release is called, or the rule removed */
#define RL_FAULT_FLIP 5 /* a read gives, or a write leaves, wrong bytes: one bit of each sector of the range, the same one each time */
#define RL_FAULT_LOST 6 /* a write or flush is not done */
#define RL_FAULT_MISDIRECTED 7 /* a read or write goes shift_sectors further; lost, or read as zeros, where that is outside */
#define RL_FAULT_TORN \
    8 /* of a write some pieces reach, by the seed: never all, of two and more never none. A piece: `bytes`; 0, RL_FAULT_SEEDED: a sector, or a larger block */
#define RL_FAULT_GONE 9 /* -ENODEV, also to all other requests from then on, until the rule is removed */
#define RL_FAULT_SEEDED 0xffffffffffffffff /* bytes: some whole sectors, fewer than all, by the seed */
#define RL_FAULT_RULES_MAX 1024
#define RL_FAULT_SECTORS_MAX 16777216 /* of a range that is remembered sector by sector */
struct rl_fault_rule {
    uint32_t size_of;
    uint32_t kind; /* RL_FAULT_* */
    uint32_t ops; /* RL_FAULT_ON_* */
    int32_t error; /* errno */
    uint64_t first_sector, sectors; /* reads and writes that touch this range of the member only; sectors 0: all */
    uint64_t after; /* so many of those requests pass first */
    uint64_t times; /* it is done so often at most; 0: no limit */
    double probability; /* 0 to 1 */
    uint64_t delay_ms;
    uint64_t bytes;
    int64_t shift_sectors;
    uint32_t until_written; /* 1: sectors of the range that were written whole since are good again. For reads: a latent error, or rot */
};
struct rl_fault_counts {
    uint64_t reached; /* requests of the rule's kind and range */
    uint64_t hit; /* to which it was done */
    uint32_t active;
};
/* Any thread, any time, and from any request on. The rule's number. The decision about the n-th request that reaches a rule depends on the seed, that number and n. */
int rl_fault_add(rl_member *member, const struct rl_fault_rule *rule);
/* Its counts stay. */
int rl_fault_remove(rl_member *member, int rule);
/* All rules and their counts; numbers begin at 0 again. */
int rl_fault_clear(rl_member *member);
/* Lets go of what hangs now. */
int rl_fault_release(rl_member *member);
int rl_fault_count(rl_member *member, int rule, struct rl_fault_counts *out);

/* ---- Arrays (engine.c, stripe.c, metadata.c) ---------------------------------------------------------------------- */

/* What a device is in an array. */
#define RL_DEVICE_IN_SYNC 1
#define RL_DEVICE_REBUILDING 2 /* in its slot, good below recovered_sectors */
#define RL_DEVICE_REPLACEMENT 3 /* a second device of an occupied slot, good below recovered_sectors */
#define RL_DEVICE_SPARE 4
#define RL_DEVICE_FAULTY 5
#define RL_DEVICE_REMOVED 6 /* its index is free; the member was let go */

#define RL_ARRAY_READ_ONLY 1 /* nothing is ever written to a member, none is failed */
#define RL_ARRAY_FORCED \
    2 /* the superblocks say that writes were open, and the caller has decided to take parity as it is: clean from the next idle moment on */

struct rl_device_config {
    rl_member *member; /* borrowed until the array is closed or the device removed */
    uint32_t state;
    int32_t slot; /* -1 for a spare */
    const struct rl_superblock *superblock; /* its own; copied */
    const uint64_t *bad_blocks; /* pairs {first sector, sectors}, absolute, disjoint; copied */
    uint32_t bad_block_count;
    uint64_t recovered_sectors; /* RL_DEVICE_REBUILDING, _REPLACEMENT */
    uint32_t by_bitmap; /* RL_DEVICE_REBUILDING: above recovered_sectors only what the bitmap marks is out of date */
};

struct rl_array_config {
    uint32_t size_of;
    uint32_t flags;
    struct rl_geometry geometry; /* initialised */
    struct rl_superblock superblock; /* the freshest member's: the array-wide fields are taken from it */
    uint32_t device_count;
    uint32_t safe_mode_ms; /* idle time after which the array is marked clean; 0: 200 */
    const struct rl_device_config *devices;
    uint64_t (*clock_ns)(void *context); /* monotonic time; NULL: CLOCK_MONOTONIC */
    uint64_t (*wall_ns)(void *context); /* time of day, for utime; NULL: CLOCK_REALTIME */
    void *clock_context;
    const char *kernel; /* name of a parity kernel; NULL: the fastest */
};

/* Opens an array out of devices that the caller has judged (assembly.py): no policy here. Writes nothing. The engine refuses what it could not
 * serve right: -EINVAL (slots used twice, a member smaller than its superblock says), -ENODEV where the content cannot be read. With RL_FEATURE_BITMAP in the superblock, and not
 * read-only, the bitmap is read from the members in sync: -EBADMSG where none holds one that can be used. */
int rl_array_open(const struct rl_array_config *config, rl_array **out);

/* Marks it clean (rw), lets the members go. -EBUSY while a sync handle, a call or a member made of it lives. Whatever it returns but -EBUSY, the handle is gone; < 0 says that
 * the clean mark or the last flush failed. NULL is a no-op. */
int rl_array_close(rl_array *array);

uint64_t rl_array_size(const rl_array *array); /* bytes */
uint32_t rl_array_block_bytes(const rl_array *array); /* requests aligned to it need no read of their edges */

/* Whole request or failure; any byte range inside the array. -EIO: more is lost than the level bears, or read errors on too many members;
 * -EROFS; -ENOSPC: a member's file system is full (no member is failed for it); -EINVAL: past the end. */
int rl_array_pread(rl_array *array, void *buffer, uint64_t length, uint64_t offset);
#define RL_BUFFER_STABLE 1 /* the buffer cannot change during the call: no copy is needed */
int rl_array_pwrite(rl_array *array, const void *buffer, uint64_t length, uint64_t offset, uint32_t flags);
/* Everything acknowledged before is on stable storage of every member in use. A member whose flush fails is failed. */
int rl_array_flush(rl_array *array);
/* The range reads as zeros afterwards. flags: RL_ZERO_*. Whole stripes reach the members as such, where they then give zeros; the rest is written. */
int rl_array_zero(rl_array *array, uint64_t length, uint64_t offset, uint32_t flags);

/* Fails a device: it is out, and the survivors' superblocks say so, before the call returns. -EBUSY if content would be lost by it. */
int rl_array_fail(rl_array *array, uint32_t device);
/* Lets go of a faulty device or a spare: its index becomes RL_DEVICE_REMOVED. -EBUSY for one in use. */
int rl_array_remove(rl_array *array, uint32_t device);
/* Takes a new member in as a spare, writes its superblock (data_offset and data_size as given in `superblock`; the array-wide fields and its dev_number are filled
 * in here). *device: its index. -ENOSPC if the member is too small. */
int rl_array_add(rl_array *array, rl_member *member, const struct rl_superblock *superblock, uint32_t *device);
/* Gives spare `device` the empty slot `slot`, or with -1 the first that is empty; it is then RL_DEVICE_REBUILDING from 0. -ENOENT: it is not empty, or
 * none is. */
int rl_array_activate_spare(rl_array *array, uint32_t device, int32_t slot);
/* Makes spare `device` the replacement of the device in `slot`, which is in sync and stays in service: it is then RL_DEVICE_REPLACEMENT from 0, and at the end of its
 * recovery takes the slot, and the old device is faulty with the reason "replaced". -EINVAL: no spare, or nothing in sync there; -EBUSY: the slot has a replacement;
 * -EOPNOTSUPP: a 0.90 superblock cannot say it. */
int rl_array_replace(rl_array *array, uint32_t device, uint32_t slot);

/* Takes a former member back into the slot that its own superblock names, as RL_DEVICE_REBUILDING of which a recovery copies only what the bitmap has marked since it was away. bad_blocks:
 * its log's, as in rl_device_config. -ENOENT: there is no bitmap, it has been away for longer than the bitmap reaches back, or it was used apart: it can come in as a spare
 * only. -EBUSY: its slot or its device number is taken. */
int rl_array_readd(rl_array *array, rl_member *member, const struct rl_superblock *superblock, const uint64_t *bad_blocks,
                   uint32_t bad_block_count, uint32_t *device);
/* Gives the array a write-intent bitmap of that chunk, `offset_sectors` from each superblock, in an area of reserved_sectors; or with chunk_bytes 0 takes it away. -EEXIST: it has one;
 * -EBUSY: a resync is due, a job runs, or (taking away) a member is being recovered by it; -EINVAL: it does not fit there, on some device; -EOPNOTSUPP: the level has no redundancy. */
int rl_array_set_bitmap(rl_array *array, uint32_t chunk_bytes, int32_t offset_sectors, uint32_t reserved_sectors);

struct rl_bitmap_status {
    uint32_t chunk_bytes; /* 0: the array has no bitmap (one that is open read-only: it was not looked at) */
    uint32_t daemon_sleep_s;
    uint64_t bits, set; /* in all, and those that are set on the members */
    uint64_t needed; /* of those, what a resync has to go over */
    uint64_t events_cleared;
};
void rl_array_bitmap(rl_array *array, struct rl_bitmap_status *out);

#define RL_STATE_CLEAN 1 /* no write is open; parity and copies agree */
#define RL_STATE_ACTIVE 2 /* writes may be open, or a resync is due */
#define RL_STATE_FAILED 4 /* more is lost than the level bears */
#define RL_STATE_READ_ONLY 8
#define RL_STATE_NO_SPACE 16 /* nothing is written: every change is -ENOSPC until rl_array_service finds that there is space again */

struct rl_array_status {
    uint32_t state; /* RL_STATE_* bits */
    uint32_t device_count; /* indices in use, removed ones included */
    uint32_t slots_in_sync;
    uint32_t slots_missing; /* empty or not in sync */
    uint32_t lost_more; /* how many further slots may be lost without loss of content, whichever they are */
    uint64_t events;
    uint64_t resync_sectors; /* parity and copies agree below it; RL_MAX_SECTOR: everywhere */
    uint64_t mismatch_count; /* of the last check or repair: 512-byte sectors, as md counts */
    uint64_t corrected_reads;
    uint64_t reads, writes, read_bytes, written_bytes; /* requests since open */
    int32_t full_device; /* RL_STATE_NO_SPACE: which, or -1 */
};
void rl_array_status(rl_array *array, struct rl_array_status *out); /* all zeros in a forked child */

struct rl_device_status {
    uint32_t state;
    int32_t slot, last_slot; /* last_slot: where a faulty one was, or -1 */
    uint32_t dev_number;
    uint64_t recovered_sectors;
    uint64_t read_errors, corrected_reads;
    uint64_t write_errors; /* blocks that could not be written, and are marked as bad for it */
    uint64_t bad_block_count; /* ranges */
    uint32_t by_bitmap; /* RL_DEVICE_REBUILDING: 1: it was away, and only what changed meanwhile is copied */
    char reason[160]; /* why it is faulty */
};
int rl_array_device(rl_array *array, uint32_t device, struct rl_device_status *out);
/* The superblock as it would be written now. */
int rl_array_superblock(rl_array *array, uint32_t device, struct rl_superblock *out);

/* ---- Service, events (service.c) ---------------------------------------------------------------------------------- */

/* What belongs to no request: marks the idle array clean, heartbeats the members. Runs on the owner's thread. 0: rl_array_stop() was called; 1: a device has
 * failed (or cannot write a block) and a spare is there, or a write found no space and a resync is due: act, and call again. */
int rl_array_run(rl_array *array);
/* Makes rl_array_run and rl_event_wait return; they return at once from then on. */
void rl_array_stop(rl_array *array);
/* One round of the same work, for owners with a loop (or a clock) of their own: does what is due, returns ms until the next is due. */
int rl_array_service(rl_array *array);

#define RL_EVENT_FAIL 1
#define RL_EVENT_SPARE_ACTIVE 2
#define RL_EVENT_SYNC_STARTED 3
#define RL_EVENT_SYNC_FINISHED 4
#define RL_EVENT_READ_CORRECTED 5
#define RL_EVENT_NO_SPACE 6
#define RL_EVENT_ADDED 7
#define RL_EVENT_REMOVED 8
#define RL_EVENT_BAD_BLOCK 10 /* a block of the device is marked as bad */
#define RL_EVENT_REPLACED 9 /* the device is out of its slot, which its replacement has taken */
#define RL_EVENT_SPACE 11 /* there is space again */
struct rl_event {
    uint32_t kind;
    int32_t device, slot;
    uint64_t offset;
    uint64_t time_ns; /* wall clock */
    char text[160];
};
/* The oldest event not yet fetched. 1: one was given; 0: timeout; -ESHUTDOWN after rl_array_stop. The queue holds 256, older ones go. */
int rl_event_wait(rl_array *array, struct rl_event *out, int timeout_ms);

/* ---- Sync jobs (sync.c) ------------------------------------------------------------------------------------------- */

typedef struct rl_sync rl_sync;
#define RL_SYNC_RECOVER 1 /* fill every REBUILDING and REPLACEMENT device, from its checkpoint */
#define RL_SYNC_RESYNC 2 /* make parity and copies agree, from resync_sectors on */
#define RL_SYNC_CHECK 3 /* count mismatches */
#define RL_SYNC_REPAIR 4 /* and mend them */

#define RL_SYNC_IDLE 0
#define RL_SYNC_RUNNING 1
#define RL_SYNC_PAUSED 2
#define RL_SYNC_DONE 3
#define RL_SYNC_CANCELLED 4
#define RL_SYNC_FAILED 5

struct rl_sync_progress {
    uint32_t kind, state;
    uint64_t start_bytes, done_bytes, total_bytes; /* of each member; start: where it went on */
    uint64_t mismatch_count; /* sectors */
    uint64_t elapsed_ns;
    int32_t result; /* -errno once FAILED */
};
/* A mismatch that was found. slot: the member that lies, where the code can tell; else -1. */
struct rl_mismatch {
    uint64_t sector, sectors; /* parity levels: member sectors; mirrors: array sectors */
    int32_t slot;
    uint32_t repaired; /* 1: rewritten */
};
#define RL_MISMATCHES_MAX 4096 /* kept per job; more are counted only */

/* -EBUSY if a job runs on the array already. -EROFS for all kinds but CHECK on a read-only array. */
int rl_sync_new(rl_array *array, uint32_t kind, rl_sync **out);
/* Works on the calling thread until done, cancelled (-ECANCELED) or failed. Checkpoints as md does, so that a later job goes on there. */
int rl_sync_run(rl_sync *sync);
/* Any thread, any time between new and free. */
void rl_sync_pause(rl_sync *sync, int paused);
void rl_sync_cancel(rl_sync *sync);
/* Bytes a second of each member: at least min while users' I/O goes on, at most max. 0: no limit. */
void rl_sync_speed(rl_sync *sync, uint64_t min_bytes_per_s, uint64_t max_bytes_per_s);
void rl_sync_progress(const rl_sync *sync, struct rl_sync_progress *out);
unsigned rl_sync_mismatches(rl_sync *sync, struct rl_mismatch *out, unsigned first, unsigned count);
void rl_sync_free(rl_sync *sync);

/* ---- Doors -------------------------------------------------------------------------------------------------------- */

/* The table of block operations that doors (FUSE, NBD) use on a handle. Same contracts as rl_array_*. */
struct rl_block_ops {
    uint32_t size_of;
    uint32_t version; /* 2 */
    int (*pread)(void *handle, void *buffer, uint64_t length, uint64_t offset);
    int (*pwrite)(void *handle, const void *buffer, uint64_t length, uint64_t offset, uint32_t flags);
    int (*flush)(void *handle);
    int (*zero)(void *handle, uint64_t length, uint64_t offset, uint32_t flags);
    uint64_t (*size)(void *handle);
    uint32_t (*block_bytes)(void *handle);
};
const struct rl_block_ops *rl_array_block_ops(void);

/* ---- Simulation (sim.c, sim_crude.c, sim_rare.c: pure) -------------------------------------------------------------- */

/* Missions of one group of disks, or of one declustered pool, drawn at random. Pure: no allocation, no state but the caller's `scratch`, no libm: a block's numbers come from
 * (seed, block) alone and are the same to the bit on every CPU with IEEE doubles. Times are hours from the mission's start, at which every disk is new. A model and what it points to is
 * only read, by any number of threads; each call needs a scratch of its own of rl_sim_scratch_bytes. */

#define RL_SIM_DISKS_MAX 1048576
#define RL_SIM_RARE_DISKS_MAX 256 /* of a model that rl_sim_rare takes */
#define RL_SIM_TABLE_DISKS_MAX 24 /* of a model with a table of lost sets */
#define RL_SIM_SPARES_MAX 4096
#define RL_SIM_UNLIMITED 0xffffffff
#define RL_SIM_BINS 64

/* The law of a time: of a lifetime by its age, of a repair by its duration. CONSTANT is for durations only. */
#define RL_SIM_CONSTANT 1 /* scale_hours */
#define RL_SIM_EXPONENTIAL 2 /* mean scale_hours */
#define RL_SIM_WEIBULL 3 /* cumulative hazard ((t - location) / scale)^shape past the location, 0 before it: a shift */
#define RL_SIM_PIECEWISE \
    4 /* cumulative[k] at at_hours[k], straight between them, tail_per_hour after the last; both begin with 0, at_hours ascends strictly */
struct rl_sim_law {
    uint32_t kind;
    uint32_t knots;
    double location_hours, scale_hours, shape;
    double tail_per_hour;
    const double *at_hours, *cumulative;
};

/* Shocks: a Poisson stream; each strikes at once `kills` places of its scope, chosen evenly, or with kills 0 each of them with `probability`. The working disks in them fail. */
struct rl_sim_shock {
    double per_hour; /* of each scope */
    double probability;
    uint32_t kills;
    uint32_t per_shelf; /* the scope: 1: each shelf has a stream of its own; 0: all disks */
};

struct rl_sim_model {
    uint32_t size_of;
    uint32_t disks;
    uint32_t tolerance; /* a loss: more than so many disks down at once (pool: pieces of one group) */
    uint32_t counting; /* 0: a mission ends with its first loss; 1: it goes on, every loss counts (below) */
    const uint8_t *
        lost_sets; /* or NULL: bit s & 7 of byte s >> 3 is 1 where the set s of down disks (bit i: disk i) is a loss; as rl_sim_lost_sets makes it */
    /* A pool: groups > 0. Group g has a piece on each of the disks placement[g * width ...], which are distinct; rank[] says as which of its disk's pieces that one is rebuilt, from 0.
     * piece_first[disk] .. piece_first[disk + 1] are the places in pieces[] of the groups on a disk. */
    uint32_t groups, width;
    const uint32_t *placement, *rank, *piece_first, *pieces;
    double mission_hours;
    struct rl_sim_law lifetime; /* of a new disk */
    struct rl_sim_law repair; /* from the moment at which a disk and a crew are there, to the new disk in service */
    struct rl_sim_law
        replacement; /* with finite spares: from a failure to the arrival of the disk that was ordered for it; orders do not wait for each other */
    uint32_t crews; /* repairs at a time, first come first served; RL_SIM_UNLIMITED: all in parallel */
    uint32_t spares; /* at the start; every failure uses one up, or waits for one; RL_SIM_UNLIMITED: never a wait */
    /* Latent errors: each disk gets them as a Poisson stream from its birth on; each is there until its own scrub finds it. exposure[k] is the integral of P(not yet found) over ages 0 to
     * k * exposure_step_hours, constant past the last; NULL: nothing scrubs. They cost data where a failure leaves the group without redundancy and one is on a disk that is then needed;
     * one that comes later, while the group is rebuilt, does not (Elerath & Pecht 2007). No pools. */
    double latent_per_hour; /* of each disk; 0: none */
    const double *exposure;
    uint32_t exposure_count;
    uint32_t shock_count;
    double exposure_step_hours;
    double latent_fraction; /* of the data that such a loss costs */
    const struct rl_sim_shock *shocks;
    /* Shelves: disks i * shelf_disks and the next ones; 0: none. After a failure in one, the hazard of its disks is boost_factor times as high for boost_hours; not more for two of them. */
    uint32_t shelf_disks;
    /* Batches: disks i * batch_disks and the next ones; 0: none. Each is bad with batch_probability: its disks, until replaced, have batch_factor times the hazard. */
    uint32_t batch_disks;
    double boost_factor, boost_hours;
    double batch_probability, batch_factor;
};

/* Sums over the missions of one block. A mission's score is 1 if it ended in a loss (counting: the number of its losses); rl_sim_rare: a weight with the same expectation.
 * counting: after a loss, a group has no further one until no disk of it is down; its latent errors are gone then. A pool's group counts whenever it comes to miss more than it bears. */
struct rl_sim_sums {
    uint64_t missions;
    uint64_t hits; /* missions with a score above 0 */
    uint64_t failures; /* of disks */
    uint64_t steps; /* events of all kinds: what the block cost */
    double score, score_squares, score_max;
    double score_hours; /* each score times the time of the loss */
    double fraction,
        fraction_squares; /* of the data that was lost; group: what the rebuild that had come furthest still lacked, all of it with lost_sets; pool: lost groups / groups */
    double latent, shock; /* of the score: by a latent error; at a shock. The rest: by single failures */
    double degraded_hours; /* with a disk down; rl_sim_crude only */
    double by_time[RL_SIM_BINS]; /* of the score, by the time of the loss, in equal parts of the mission */
};

/* Bytes of scratch for a model, 0 for one that is not valid: rl_last_error().text says why. */
uint64_t rl_sim_scratch_bytes(const struct rl_sim_model *model);
/* Plays `missions` missions. stop: NULL, or a word that another thread makes 1 to have the call end soon. Returns 0, -EINVAL for a model that is not valid, or -ECANCELED: stopped, and *out is of
 * no use. */
int rl_sim_crude(const struct rl_sim_model *model, uint64_t seed, uint64_t block, uint64_t missions, void *scratch, const uint32_t *stop,
                 struct rl_sim_sums *out);
/* The same, for losses that are rare: P(loss) without bias and with small variance, by a conditioned first strike and a biased branch for every episode with disks down. Groups of at most
 * RL_SIM_RARE_DISKS_MAX disks, not counting. */
int rl_sim_rare(const struct rl_sim_model *model, uint64_t seed, uint64_t block, uint64_t missions, void *scratch, const uint32_t *stop,
                struct rl_sim_sums *out);
/* The time by which a share of 1 - exp(-cumulative) of a law has ended, and its inverse: for tests and plots. */
double rl_sim_law_time(const struct rl_sim_law *law, double cumulative);
double rl_sim_law_hazard(const struct rl_sim_law *law, double hours);
/* Which of the 2^slots sets of missing slots lose data, by rl_geometry_enough: fills 2^slots / 8 (at least 1) bytes as in lost_sets. slots <= RL_SIM_TABLE_DISKS_MAX. */
int rl_sim_lost_sets(const struct rl_geometry *g, uint8_t *lost_sets);
/* 1 if so many distinct disks, all down with nothing rebuilt, are a loss of the model, else 0: the very test that the simulation makes. */
int rl_sim_lost(const struct rl_sim_model *model, const uint32_t *down, uint32_t count, void *scratch);

/* CDEF-END */

#endif
