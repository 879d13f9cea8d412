/* rig.h: what the C programs of the tests share: shapes of arrays, members that fail on demand, arrays out of what the superblocks say. */
#ifndef RIG_H
#define RIG_H

#include "raidlib.h"

#include <stdbool.h>

#define RIG_SECTOR 512u
#define RIG_DATA_OFFSET 64u /* sectors */
#define RIG_MEMBERS_MAX 400u

struct rig_shape {
    const char *name;
    int32_t level;
    uint32_t layout, chunk_sectors, slots;
    bool bitmap; /* a write-intent bitmap with regions of 4096 bytes, swept every second */
};
/* Of every level, and of the layouts those that differ in how they are computed with. Ends with a NULL name. */
extern const struct rig_shape rig_shapes[];

/* A member with what it is made of: a fault member, over one that is slow (or not), over one in memory. */
struct rig_member {
    rl_member *member, *slow, *memory;
};

struct rig {
    const struct rig_shape *shape;
    uint64_t dev_sectors, seed;
    bool logs; /* members have bad-block logs */
    bool slow; /* members do their requests sector by sector, in any order, and let others run in between */
    struct rig_member members[RIG_MEMBERS_MAX]; /* member NULL: closed */
    unsigned member_count;
    rl_array *array;
    int member_of[RIG_MEMBERS_MAX]; /* by device index of the open array */
};

/* Says what is wrong, with the engine's last error and the line that `rig_context` says, and aborts (so that a debugger or a core has it all). */
_Noreturn void rig_die(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* How to come here once more: printed by rig_die. */
extern char rig_context[256];
/* 0 or an accepted error; dies of any other. */
int rig_check(int result, int accepted, const char *what);

uint64_t rig_random(uint64_t *state);
uint64_t rig_below(uint64_t *state, uint64_t limit);
uint64_t rig_now_ns(void);

/* A new member, large enough, blank. Its index. */
unsigned rig_member_new(struct rig *rig);
void rig_member_close(struct rig *rig, unsigned index);
/* The superblock for a new member of the array. */
struct rl_superblock rig_superblock(const struct rig *rig);
/* What a member's superblock says of it. */
struct rl_superblock rig_read_superblock(const struct rig *rig, unsigned index);
/* Makes the members of a new array, all in sync, and writes their superblocks. */
void rig_create(struct rig *rig, const struct rig_shape *shape, uint64_t dev_sectors, uint64_t seed, bool slow);
/* Opens what the superblocks of the rig's members say. */
void rig_open(struct rig *rig);
/* The same from forks of the members' memory as they are now, read-only, without the slots whose bit is set in `without`; the forks go with rig_forks_close.
 * false: the level does not bear it. */
struct rig_forks {
    rl_array *array;
    rl_member *members[RIG_MEMBERS_MAX];
    unsigned count;
};
bool rig_forks_open(const struct rig *rig, uint32_t without, struct rig_forks *forks);
void rig_forks_close(struct rig_forks *forks);
/* Closes the array and all members. */
void rig_close(struct rig *rig);
/* Runs a job of that kind to its end on this thread; its mismatches. */
uint64_t rig_sync(rl_array *array, uint32_t kind);

#endif
