/* recover.c: the slices of a recovery: what the targets (rebuilding members, replacements) lack is read from the others, or computed, and written to them.
 *
 * A block that can be neither read nor computed does not end it: it is marked as bad on the target (badblocks.c), and the rest is rebuilt. `recovered` of a target moves
 * under the stripe lock of what it passes (I5). Positions are member sectors. The loop around it: sync.c.
 */
#include "internal.h"

#define CALL "rl_sync_run"

static bool is_target(const struct device *d)
{
    return d->state == RL_DEVICE_REBUILDING || d->state == RL_DEVICE_REPLACEMENT;
}

bool rl_recovery_start(rl_array *a, uint64_t *sector)
{
    bool any = false;
    *sector = RL_MAX_SECTOR;
    pthread_rwlock_rdlock(&a->config);
    for (uint32_t i = 0; i < a->device_count; i++) {
        const struct device *d = a->devices[i];
        if (is_target(d)) {
            any = true;
            *sector = rl_min(*sector, atomic_load(&d->recovered));
        }
    }
    pthread_rwlock_unlock(&a->config);
    return any;
}

/* How much from there on is alike: of every target that has come so far good already (*skip), or not. config lock held, either way. */
static uint64_t alike(const rl_array *a, uint64_t sector, uint64_t total, bool *skip)
{
    uint64_t run = total - sector;
    bool any = false;
    *skip = true;
    for (uint32_t i = 0; i < a->device_count; i++) {
        const struct device *d = a->devices[i];
        bool marked = true;
        if (!is_target(d) || atomic_load(&d->recovered) != sector)
            continue;
        any = true;
        if (d->by_bitmap)
            run = rl_bitmap_run(a, (uint32_t)d->slot, sector, run, &marked);
        *skip &= !marked;
    }
    *skip &= any;
    return run;
}

uint64_t rl_recovery_skip(rl_array *a, uint64_t sector, uint64_t total, uint64_t *end)
{
    bool skip = false;
    pthread_rwlock_rdlock(&a->config);
    uint64_t run = alike(a, sector, total, &skip);
    pthread_rwlock_unlock(&a->config);
    *end = sector + run;
    if (!skip)
        return 0;
    pthread_rwlock_wrlock(&a->config); /* a write that is under way may be about to mark it, and has seen where the targets are */
    run = alike(a, sector, total, &skip);
    *end = sector + run;
    for (uint32_t i = 0; skip && i < a->device_count; i++) {
        if (is_target(a->devices[i]) && atomic_load(&a->devices[i]->recovered) == sector)
            atomic_store(&a->devices[i]->recovered, sector + run);
    }
    pthread_rwlock_unlock(&a->config);
    return skip ? run : 0;
}

static int write_targets(struct request *rq, const int32_t *devices, unsigned count, void *data, uint64_t sector, uint64_t length)
{
    for (unsigned j = 0; j < count; j++) {
        struct device *d = devices[j] >= 0 ? rq->a->devices[devices[j]] : NULL;
        if (!d || !is_target(d) || atomic_load(&d->recovered) != sector)
            continue;
        struct rl_io io = rl_device_io(rq->a, (uint32_t)devices[j], RL_OP_WRITE, data, sector * RL_SECTOR, length);
        rl_io_run(&io, 1);
        if (rl_is_space_error(io.result)) {
            rl_note_full(rq->a, devices[j]);
            return rl_fail(ENOSPC, CALL, d->slot, sector * RL_SECTOR, "no space is left under %s", d->member->name);
        }
        if (io.result) {
            rl_request_failed(rq, (uint32_t)devices[j], io.result);
            continue;
        }
        rl_bad_clear(rq->a, (uint32_t)devices[j], sector, length / RL_SECTOR);
        atomic_store(&d->recovered, sector + length / RL_SECTOR); /* I5: the stripe lock is held */
    }
    return 0;
}

/* Nobody knows the block any more: it is marked as bad on the targets, and the rebuild goes on. -EIO: one has no room for the mark. */
static int mark_targets(struct request *rq, const int32_t *devices, unsigned count, uint64_t sector, uint64_t length)
{
    for (unsigned j = 0; j < count; j++) {
        struct device *d = devices[j] >= 0 ? rq->a->devices[devices[j]] : NULL;
        if (!d || !is_target(d) || atomic_load(&d->recovered) != sector)
            continue;
        if (!rl_bad_mark(rq->a, (uint32_t)devices[j], sector, length / RL_SECTOR))
            return rl_fail(EIO, CALL, d->slot, sector * RL_SECTOR,
                           "a block can be neither read nor computed, and there is no room in a bad-block log of %s to say so",
                           d->member->name);
        atomic_store(&d->recovered, sector + length / RL_SECTOR);
        rl_event_post(rq->a, RL_EVENT_BAD_BLOCK, devices[j], sector * RL_SECTOR, "a block that nobody knows any more is marked as bad");
    }
    return 0;
}

/* The piece of one block of the vector, or of all wanted ones, onto its targets. */
static int recover_piece(struct request *rq, struct workspace *w, const struct stripe *st, uint64_t sector, uint64_t length,
                         const uint8_t *want)
{
    rl_array *a = rq->a;
    int rc = rl_stripe_fetch(rq, st, w, sector % a->g.chunk_sectors * RL_SECTOR, length, 0, want, RL_IO_DEVICE);
    for (unsigned i = 0; rc == 0 && i < st->nd + st->np; i++) {
        int32_t slot = st->slot_of[i];
        if (want[i])
            rc = write_targets(rq, (int32_t[]){a->slot_device[slot], a->replacement[slot]}, 2, w->block[i], sector, length);
    }
    return rc;
}

/* Something of the piece cannot be read: block by block, and each target by itself. */
static int recover_carefully(struct request *rq, struct workspace *w, const struct stripe *st, uint64_t sector, uint64_t length,
                             const uint8_t *want)
{
    rl_array *a = rq->a;
    uint64_t block = a->block_bytes;
    int rc = 0;
    for (uint64_t at = 0; rc == 0 && rq->failed_count == 0 && at < length; at += block) {
        for (unsigned i = 0; rc == 0 && rq->failed_count == 0 && i < st->nd + st->np; i++) {
            uint8_t one[RL_VECTOR_MAX] = {0};
            int32_t slot = st->slot_of[i];
            if (!want[i])
                continue;
            one[i] = 1;
            rc = recover_piece(rq, w, st, sector + at / RL_SECTOR, block, one);
            if (rl_is_unreadable(rq, rc))
                rc = mark_targets(rq, (int32_t[]){a->slot_device[slot], a->replacement[slot]}, 2, sector + at / RL_SECTOR, block);
        }
    }
    return rc;
}

static int recover_stripe(struct request *rq, struct workspace *w, uint64_t sector, uint64_t total, uint64_t *sectors)
{
    rl_array *a = rq->a;
    struct stripe st;
    uint8_t want[RL_VECTOR_MAX] = {0};
    rl_stripe_look(a, sector / a->g.chunk_sectors, &st);
    pthread_mutex_lock(rl_stripe_lock(a, st.number));
    *sectors = rl_min(a->g.chunk_sectors - sector % a->g.chunk_sectors, rl_min(RL_SLICE_BYTES / RL_SECTOR, total - sector));
    *sectors = rl_uniform_run(a, sector, *sectors);
    for (unsigned i = 0; i < st.nd + st.np; i++) {
        int32_t slot = st.slot_of[i];
        if (slot < 0)
            continue;
        for (unsigned j = 0; j < 2; j++) {
            int32_t d = j ? a->replacement[slot] : a->slot_device[slot];
            want[i] |= d >= 0 && is_target(a->devices[d]) && atomic_load(&a->devices[d]->recovered) == sector;
        }
    }
    int rc = recover_piece(rq, w, &st, sector, *sectors * RL_SECTOR, want);
    if (rl_is_unreadable(rq, rc))
        rc = recover_carefully(rq, w, &st, sector, *sectors * RL_SECTOR, want);
    pthread_mutex_unlock(rl_stripe_lock(a, st.number));
    return rc;
}

/* A piece of one region, from any copy that is there, onto the targets among a slot's devices; where it cannot be read, block by block. */
static int copy_piece(struct request *rq, void *block, const int32_t *devices, uint64_t sector, uint64_t from, uint64_t length)
{
    uint64_t unit = rq->a->block_bytes;
    int rc = rl_mirror_fetch(rq, block, length, from * RL_SECTOR);
    if (rc == 0)
        return write_targets(rq, devices, 2, block, sector, length);
    for (uint64_t at = 0; at < length; at += unit) {
        uint64_t here = sector + at / RL_SECTOR;
        if (rq->failed_count || (rc && !rl_is_unreadable(rq, rc)))
            break;
        rc = rl_mirror_fetch(rq, block, unit, from * RL_SECTOR + at);
        rc = rc == 0                    ? write_targets(rq, devices, 2, block, here, unit)
             : rl_is_unreadable(rq, rc) ? mark_targets(rq, devices, 2, here, unit)
                                        : rc;
        if (rc)
            break;
    }
    return rc;
}

/* One slot's part of a slice of a mirrored level. */
static int recover_copy(struct request *rq, struct workspace *w, uint32_t slot, uint64_t sector, uint64_t sectors)
{
    rl_array *a = rq->a;
    int32_t devices[2] = {a->slot_device[slot], a->replacement[slot]};
    for (uint64_t done = 0, step = 0; done < sectors; done += step) {
        uint64_t from = 0, run = 0, end = 0;
        int rc = rl_geometry_inverse(&a->g, slot, sector + done, &from, &run);
        step = rl_min(sectors - done, rc ? sectors : run);
        if (rc) { /* the unused tail of the member */
            for (unsigned j = 0; j < 2; j++) {
                struct device *d = devices[j] >= 0 ? a->devices[devices[j]] : NULL;
                if (d && is_target(d) && atomic_load(&d->recovered) == sector + done)
                    atomic_store(&d->recovered, sector + done + step);
            }
            continue;
        }
        uint64_t region = rl_mirror_region(a, from, &end);
        step = rl_min(step, end - from);
        void *block = rl_workspace_block(w, &w->block[0]);
        if (!block)
            return rl_fail(ENOMEM, CALL, -1, 0, "no memory");
        pthread_mutex_lock(rl_stripe_lock(a, region));
        rc = copy_piece(rq, block, devices, sector + done, from, step * RL_SECTOR);
        pthread_mutex_unlock(rl_stripe_lock(a, region));
        if (rc)
            return rc;
    }
    return 0;
}

int rl_recover_slice(struct request *rq, struct workspace *w, uint64_t sector, uint64_t total, uint64_t *sectors)
{
    rl_array *a = rq->a;
    if (a->g.parity)
        return recover_stripe(rq, w, sector, total, sectors);
    uint64_t unit = a->g.chunk_sectors ? a->g.chunk_sectors : RL_SLICE_BYTES / RL_SECTOR;
    *sectors = rl_min(unit - sector % unit, rl_min(RL_SLICE_BYTES / RL_SECTOR, total - sector));
    *sectors = rl_uniform_run(a, sector, *sectors);
    for (uint32_t slot = 0; slot < a->g.slots; slot++) {
        bool wanted = false;
        for (unsigned j = 0; j < 2; j++) {
            int32_t d = j ? a->replacement[slot] : a->slot_device[slot];
            wanted |= d >= 0 && is_target(a->devices[d]) && atomic_load(&a->devices[d]->recovered) == sector;
        }
        int rc = wanted ? recover_copy(rq, w, slot, sector, *sectors) : 0;
        if (rc)
            return rc;
    }
    return 0;
}

int rl_recovery_finish(rl_array *a, uint64_t total)
{
    struct request rq = {.a = a};
    uint64_t failures = rl_lock_flushed(a, &rq);
    int rc = 0;
    for (uint32_t i = 0; failures == 0 && rc == 0 && i < a->device_count; i++) {
        struct device *d = a->devices[i];
        if (!is_target(d) || atomic_load(&d->doubted) || atomic_load(&d->recovered) < total)
            continue;
        if (d->state == RL_DEVICE_REPLACEMENT) {
            rc = rl_device_take_over(a, i);
            continue;
        }
        d->state = RL_DEVICE_IN_SYNC;
        d->by_bitmap = false;
        atomic_store(&d->recovered, RL_MAX_SECTOR);
        rl_count_uneven(a);
        rl_event_post(a, RL_EVENT_SPARE_ACTIVE, (int32_t)i, 0, "rebuilt and in sync");
        rc = rl_metadata_commit(a);
    }
    pthread_rwlock_unlock(&a->config);
    int settled = rl_request_settle(&rq);
    return rc ? rc : settled;
}
