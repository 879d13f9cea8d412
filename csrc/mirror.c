/* mirror.c: levels without parity: raid1 and raid10, and, with one copy, raid0 and linear.
 *
 * A region (a chunk; 256 KiB of raid1 and linear) is written under its lock, so that all copies see overlapping writes in one order (I4).
 */
#include "internal.h"

#define REGION_SECTORS 512u

uint64_t rl_mirror_region(const rl_array *a, uint64_t sector, uint64_t *end)
{
    uint64_t unit = a->g.level == 0 || a->g.level == 10 ? a->g.chunk_sectors : REGION_SECTORS;
    *end = rl_min(rl_round_down(sector, unit) + unit, a->g.array_sectors);
    return sector / unit;
}

/* In which order the copies are asked, by index: as in io.c, so that one that cannot be read there is asked here again, and mended; write-mostly devices last. Where
 * copies may differ (no resync yet) the order is the resync's. */
static void order_copies(const rl_array *a, const struct rl_place *places, unsigned count, uint64_t offset, uint64_t length, uint8_t *order)
{
    bool agree = (offset + length) / RL_SECTOR <= atomic_load(&a->resync);
    unsigned n = 0, turn = agree ? rl_copy_turn(count, offset) : 0;
    for (unsigned last = 0; last < 2; last++) {
        for (unsigned j = 0; j < count; j++) {
            unsigned i = (turn + j) % count;
            int32_t device = a->slot_device[places[i].slot];
            bool mostly = agree && device >= 0 && a->devices[device]->sb.devflags & 1;
            if (mostly == (last > 0))
                order[n++] = (uint8_t)i;
        }
    }
}

/* One block from any copy; copies that fail to read it are mended from the one that does. */
static int fetch_block(struct request *rq, void *buffer, uint64_t length, uint64_t offset)
{
    rl_array *a = rq->a;
    struct rl_place places[RL_SLOTS_MAX];
    uint32_t broken[RL_COPIES_MAX];
    uint64_t broken_at[RL_COPIES_MAX], run = 0;
    unsigned count = (unsigned)rl_geometry_locate(&a->g, offset / RL_SECTOR, places, &run), broken_count = 0;
    uint8_t order[RL_SLOTS_MAX];
    bool found = false;
    order_copies(a, places, count, offset, length, order);
    for (unsigned i = 0; i < 2 * count && !found; i++) { /* what the device of a slot cannot read its replacement may hold already */
        const struct rl_place *p = &places[order[i / 2]];
        int32_t device = i % 2 ? a->replacement[p->slot] : a->slot_device[p->slot];
        if (device < 0 || !rl_device_usable(a, (uint32_t)device, p->sector, length / RL_SECTOR))
            continue;
        struct rl_io io = rl_device_io(a, (uint32_t)device, RL_OP_READ, buffer, p->sector * RL_SECTOR, length);
        io.flags = rq->io_flags;
        rl_io_run(&io, 1);
        found = io.result == 0;
        if (io.result == -ENODEV)
            rl_request_failed(rq, (uint32_t)device, io.result);
        else if (io.result && broken_count < RL_COPIES_MAX) {
            broken[broken_count] = (uint32_t)device;
            broken_at[broken_count++] = p->sector * RL_SECTOR;
        }
    }
    if (!found)
        return rl_fail(EIO, "rl_array_pread", -1, offset, "no copy of the block at byte %llu can be read", (unsigned long long)offset);
    for (unsigned i = 0; i < broken_count; i++)
        rl_heal(rq, broken[i], buffer, length, broken_at[i]);
    return 0;
}

int rl_mirror_fetch(struct request *rq, void *buffer, uint64_t length, uint64_t offset)
{
    rl_array *a = rq->a;
    struct rl_place places[RL_SLOTS_MAX];
    uint64_t run = 0, block = a->block_bytes;
    uint8_t order[RL_SLOTS_MAX];
    unsigned count = (unsigned)rl_geometry_locate(&a->g, offset / RL_SECTOR, places, &run);
    order_copies(a, places, count, offset, length, order);
    for (unsigned i = 0; i < count; i++) {
        const struct rl_place *p = &places[order[i]];
        int device = rl_device_for_read(a, p->slot, p->sector, length / RL_SECTOR);
        if (device < 0)
            continue;
        struct rl_io io = rl_device_io(a, (uint32_t)device, RL_OP_READ, buffer, p->sector * RL_SECTOR, length);
        io.flags = rq->io_flags;
        rl_io_run(&io, 1);
        if (io.result == 0)
            return 0;
        break; /* now block by block */
    }
    for (uint64_t done = 0; done < length; done += block) {
        int rc = fetch_block(rq, (char *)buffer + done, block, offset + done);
        if (rc)
            return rc;
    }
    return 0;
}

/* Like rl_mirror_fetch for any byte range: whole blocks go by way of the workspace. */
int rl_mirror_read(struct request *rq, void *buffer, uint64_t length, uint64_t offset)
{
    rl_array *a = rq->a;
    uint64_t block = a->block_bytes;
    char *stage = rl_workspace_block(rq->w, &rq->w->block[0]);
    int rc = stage ? 0 : rl_fail(ENOMEM, "rl_array_pread", -1, offset, "no memory");
    for (uint64_t done = 0, step = 0; rc == 0 && done < length; done += step) {
        uint64_t at = offset + done, end = 0, low = rl_round_down(at, block);
        uint64_t region = rl_mirror_region(a, at / RL_SECTOR, &end);
        uint64_t high = rl_min(rl_min(rl_round_up(offset + length, block), end * RL_SECTOR), low + RL_SLICE_BYTES);
        pthread_mutex_lock(rl_stripe_lock(a, region));
        rc = rl_mirror_fetch(rq, stage, high - low, low);
        pthread_mutex_unlock(rl_stripe_lock(a, region));
        step = rl_min(high - at, length - done);
        if (rc == 0)
            memcpy((char *)buffer + done, stage + (at - low), step);
    }
    return rc;
}

static unsigned add_writes(rl_array *a, struct rl_io *ios, const struct rl_place *places, unsigned count, const void *data, uint64_t length)
{
    unsigned n = 0;
    for (unsigned i = 0; i < count; i++)
        n += rl_slot_writes(a, places[i].slot, (void *)(uintptr_t)data, places[i].sector, length, &ios[n]);
    return n;
}

/* The data of [offset, offset + length) as whole blocks from `low` on, edges read: the caller's buffer itself where that is safe. NULL: *rc. */
static const void *stage_data(struct request *rq, struct workspace *w, const void *buffer, uint64_t length, uint64_t offset, uint64_t low,
                              uint64_t high, bool stable, int *rc)
{
    uint64_t block = rq->a->block_bytes;
    bool edges = low != offset || high != offset + length;
    if (!edges && (stable || rq->a->g.copies == 1)) /* one copy has nothing to disagree with */
        return buffer;
    char *stage = rl_workspace_block(w, &w->block[0]);
    *rc = stage ? 0 : rl_fail(ENOMEM, "rl_array_pwrite", -1, offset, "no memory");
    if (*rc == 0 && low != offset)
        *rc = rl_mirror_fetch(rq, stage, block, low);
    if (*rc == 0 && high != offset + length && (high - low > block || low == offset))
        *rc = rl_mirror_fetch(rq, stage + (high - low - block), block, high - block);
    if (*rc)
        return NULL;
    memcpy(stage + (offset - low), buffer, length);
    return stage;
}

/* A copy could not be written for want of space, and others were: what that copy holds now goes onto all of them. */
static int make_copies_agree(struct request *rq, struct workspace *w, unsigned count)
{
    char *now = rl_workspace_block(w, &w->block[1]);
    unsigned short_of_space = 0;
    while (!rl_is_space_error(w->io[short_of_space].result))
        short_of_space++;
    uint64_t step = RL_SLICE_BYTES, length = w->io[0].length;
    int rc = now && rq->a->g.copies > 1 ? 0 : -ENOMEM;
    const struct rl_io *that = &w->io[short_of_space];
    const struct device *d = rq->a->devices[that->device];
    if (rl_bad_has(rq->a, d, that->offset / RL_SECTOR - d->sb.data_offset, length / RL_SECTOR))
        return -EIO; /* it is not to be read */
    for (uint64_t at = 0; rc == 0 && at < length; at += step) {
        step = rl_min(step, length - at);
        for (unsigned j = 0; rc == 0 && j <= count; j++) {
            unsigned which = j == 0 ? short_of_space : j - 1;
            struct rl_io io = w->io[which];
            io.op = j == 0 ? RL_OP_READ : RL_OP_WRITE;
            io.buffer = now;
            io.offset += at;
            io.length = step;
            if (j > 0 && which == short_of_space)
                continue;
            rl_io_run(&io, 1);
            rc = io.result;
        }
    }
    return rc;
}

/* Another copy of the block is there: written now. */
static bool copies_bear(const rl_array *a, const void *context, const struct rl_io *ios, unsigned count, const struct losses *lost,
                        unsigned which)
{
    uint64_t at = lost->of[which].at, end = at + lost->of[which].length;
    unsigned good = 0;
    (void)a, (void)context, (void)ios; /* no copy but those that are written now counts */
    for (unsigned i = 0; i < count; i++) {
        bool there = !lost->hard[i];
        for (unsigned l = 0; l < lost->count; l++)
            there &= lost->of[l].io != i || lost->of[l].at >= end || lost->of[l].at + lost->of[l].length <= at;
        good += there;
    }
    return good > 0;
}

static int judge_copies(struct request *rq, struct workspace *w, const struct rl_place *places, unsigned count, uint64_t offset)
{
    struct losses lost;
    int rc = rl_judge_writes(rq, w->io, count, copies_bear, NULL, &lost);
    bool differ = rc == -EIO || (rl_is_space_error(rc) && make_copies_agree(rq, w, count));
    if (rc == 0)
        rl_bad_settle_writes(rq, w->io, count, &lost);
    if (differ)
        rl_set_resync_back(rq->a, rq->a->g.level == 10 ? offset / RL_SECTOR : places[0].sector, w->io[0].length / RL_SECTOR);
    return rc;
}

int64_t rl_mirror_write(struct request *rq, struct workspace *w, const void *buffer, uint64_t length, uint64_t offset, bool stable)
{
    rl_array *a = rq->a;
    struct rl_place places[RL_SLOTS_MAX];
    uint64_t block = a->block_bytes, low = rl_round_down(offset, block), end = 0, run = 0;
    uint64_t region = rl_mirror_region(a, offset / RL_SECTOR, &end);
    uint64_t high = rl_min(rl_round_up(offset + length, block), end * RL_SECTOR);
    bool direct = low == offset && (high <= offset + length) && (stable || a->g.copies == 1);
    high = direct ? high : rl_min(high, low + RL_SLICE_BYTES);
    pthread_mutex_lock(rl_stripe_lock(a, region));
    unsigned count = (unsigned)rl_geometry_locate(&a->g, low / RL_SECTOR, places, &run);
    uint64_t sectors = rl_min(run, (high - low) / RL_SECTOR);
    for (unsigned i = 0; i < count; i++)
        sectors = rl_uniform_run(a, places[i].sector, sectors);
    high = low + sectors * RL_SECTOR;
    length = rl_min(length, high - offset);
    int rc = 0;
    const void *data = stage_data(rq, w, buffer, length, offset, low, high, stable, &rc);
    if (data) { /* what failed while the edges were read is not written */
        unsigned n = add_writes(a, w->io, places, count, data, high - low);
        rl_io_run(w->io, n);
        rc = judge_copies(rq, w, places, n, low);
    }
    pthread_mutex_unlock(rl_stripe_lock(a, region));
    return rc ? rc : (int64_t)length;
}

int64_t rl_mirror_zero(struct request *rq, struct workspace *w, uint64_t length, uint64_t offset, uint32_t flags)
{
    rl_array *a = rq->a;
    struct rl_place places[RL_SLOTS_MAX];
    uint64_t end = 0, run = 0, region = rl_mirror_region(a, offset / RL_SECTOR, &end);
    length = rl_round_down(rl_min(length, end * RL_SECTOR - offset), a->block_bytes);
    if (offset % a->block_bytes || length == 0)
        return -EOPNOTSUPP;
    pthread_mutex_lock(rl_stripe_lock(a, region));
    unsigned count = (unsigned)rl_geometry_locate(&a->g, offset / RL_SECTOR, places, &run);
    uint64_t sectors = rl_min(run, length / RL_SECTOR);
    for (unsigned i = 0; i < count; i++)
        sectors = rl_uniform_run(a, places[i].sector, sectors);
    length = sectors * RL_SECTOR;
    unsigned n = add_writes(a, w->io, places, count, NULL, length);
    rl_zero_run(w->io, n, flags);
    int rc = judge_copies(rq, w, places, n, offset);
    pthread_mutex_unlock(rl_stripe_lock(a, region));
    return rc ? rc : (int64_t)length;
}
