/* member_array.c: an array as a member of another one. Its content is the member: no code of a level knows of it (DESIGN: RAID 50, 60 and the like are arrays of
 * arrays).
 *
 * A1  Locks: a thread that comes here has locks of the outer array and takes those of the inner one, never the other way round. An inner array is open before its outer one
 *     and closed after it, so there is no circle.
 * A2  An inner array that has failed (a member that its content needs is gone) is a dead member: -ENODEV for ever (M3). What it cannot read while it works (-EIO)
 *     is an unreadable block of the outer one, which mends it by writing; a lack of space passes.
 * A3  Buffers: the outer array may hand on a caller's buffer that changes during the call, so none is taken for stable; the inner one copies where that matters.
 */
#include "internal.h"

struct array_member {
    rl_member base;
    rl_array *inner;
};

static rl_array *inner_of(const rl_member *member)
{
    return ((const struct array_member *)member)->inner;
}

/* A2 */
static int told(const rl_member *member, int rc)
{
    if (atomic_load(&inner_of(member)->broken))
        return rl_fail(ENODEV, member->name, -1, 0, "%s has failed: more members are gone than it bears", member->name);
    return rc;
}

static int array_pread(rl_member *member, void *buffer, uint64_t length, uint64_t offset, uint32_t flags)
{
    int rc = told(member, 0);
    return rc ? rc : told(member, rl_array_read(inner_of(member), buffer, length, offset, flags));
}

static int array_pwrite(rl_member *member, const void *buffer, uint64_t length, uint64_t offset)
{
    int rc = told(member, 0);
    return rc ? rc : told(member, rl_array_pwrite(inner_of(member), buffer, length, offset, 0)); /* A3 */
}

static int array_zero(rl_member *member, uint64_t length, uint64_t offset, uint32_t flags)
{
    int rc = told(member, 0);
    return rc ? rc : told(member, rl_array_zero(inner_of(member), length, offset, flags));
}

static int array_flush(rl_member *member)
{
    int rc = told(member, 0);
    return rc ? rc : told(member, rl_array_flush(inner_of(member)));
}

static int array_probe(rl_member *member)
{
    return told(member, 0); /* its own service looks after its members */
}

static void array_close(rl_member *member)
{
    atomic_fetch_sub(&inner_of(member)->users, 1);
}

static const struct rl_member_ops array_ops = {.kind = "array",
                                               .pread = array_pread,
                                               .pwrite = array_pwrite,
                                               .zero = array_zero,
                                               .flush = array_flush,
                                               .probe = array_probe,
                                               .close = array_close};

int rl_member_open_array(rl_array *inner, const char *name, rl_member **out)
{
    rl_member *base = NULL;
    int rc = rl_enter(inner, "rl_member_open_array");
    rc = rc ? rc : rl_member_new(sizeof(struct array_member), &array_ops, name, &base);
    if (rc)
        return rc;
    ((struct array_member *)base)->inner = inner;
    base->flags = inner->flags & RL_ARRAY_READ_ONLY ? RL_MEMBER_READ_ONLY : 0;
    base->size_bytes = rl_array_size(inner);
    base->block_bytes = rl_array_block_bytes(inner);
    atomic_fetch_add(&inner->users, 1);
    *out = base;
    return 0;
}
