/* bitmap.h: what bitmap.c (in use) and bitmap_admin.c (open, make, take away) share. Definitions and invariants: bitmap.c. */
#ifndef RAIDLIB_BITMAP_H
#define RAIDLIB_BITMAP_H

#include "internal.h"

#define RL_REGION_PENDING 0x0fffu
#define RL_REGION_SET 0x8000u
#define RL_REGION_FRESH 0x4000u
#define RL_REGION_NEEDED 0x2000u
#define RL_REGION_SYNCING 0x1000u
#define RL_BITMAP_PAGE RL_SB_BYTES /* what of it is written at once */
#define RL_BITMAP_QUEUE_MAX 64u

struct span {
    uint64_t first, last; /* regions */
};

struct bitmap {
    struct rl_bitmap_superblock sb; /* io, or config exclusive; but for what follows */
    _Atomic uint64_t events_cleared; /* changed with io, or config exclusive */
    uint64_t regions, region_sectors;
    _Atomic uint16_t *words;
    uint8_t *image; /* io, or config exclusive */
    uint64_t bytes;
    uint8_t *dirty; /* of the image's pages; as image */
    pthread_mutex_t io;
    pthread_mutex_t queue_lock; /* a leaf */
    struct span queue[RL_BITMAP_QUEUE_MAX]; /* queue_lock: wanted by those who wait for io */
    unsigned queued;
    uint64_t next_sweep_ns; /* service thread only */
};

/* Where it lies on a member with that superblock, in bytes. */
uint64_t rl_bitmap_offset(const rl_array *a, const struct rl_superblock *own);
/* Whether a device in that role has the bitmap: it is in a slot. */
bool rl_bitmap_is_on(const struct device *d);
/* The head, as of that event count, into the image. */
void rl_bitmap_put_head(struct bitmap *b, uint64_t events);

#endif
