/* metadata.c: when superblocks are written, and in which order. Everything here runs with the config lock held exclusively: no request is under way.
 *
 * A commit raises `events` by one and writes the superblock of every device that is not faulty, spares included, then flushes. A device's bad-block
 * log, where it has changed, comes before its superblock (badblocks.c), and the heads of the bitmap before all superblocks (bitmap.c, B4). A device that cannot take its superblock is out, and the commit is done again, so that what is on the survivors says so (I1).
 *
 *   S1  What failed and is not on the superblocks yet is due (commit_due): no write is acknowledged before a commit has succeeded (I1, rl_request_settle).
 *   S2  No device in use is ever more than one event count behind the others: with two it would be stale at the next start. So a full file system costs commits, not members.
 *
 *   clean ──rl_metadata_set_active (before the first write)──► active ──rl_metadata_set_clean (idle, close; after a flush)──► clean
 */
#include "internal.h"

bool rl_fits_090(const rl_array *a, uint32_t more)
{
    uint32_t needed = a->sb.raid_disks + more;
    for (uint32_t i = 0; i < a->device_count; i++)
        needed += a->devices[i]->state == RL_DEVICE_REBUILDING || a->devices[i]->state == RL_DEVICE_REPLACEMENT ||
                  a->devices[i]->state == RL_DEVICE_SPARE;
    return a->sb.version != 90 || needed <= RL_SB90_DISKS;
}

/* 0.90 keeps active devices at the index of their slot; what is no (full) member of a slot follows after raid_disks: faulty ones last, for which there may be no room. */
static void stamp_090(const rl_array *a, const struct device *own, struct rl_superblock *out)
{
    uint32_t next = a->sb.raid_disks;
    memset(out->disks, 0, sizeof out->disks);
    for (uint32_t slot = 0; slot < a->sb.raid_disks && slot < RL_SB90_DISKS; slot++)
        out->disks[slot] = (struct rl_sb90_disk){slot, 0, 0, slot, 9};
    for (uint32_t i = 0; i < 2 * a->device_count; i++) {
        const struct device *d = a->devices[i % a->device_count];
        bool in_sync = d->state == RL_DEVICE_IN_SYNC, faulty = d->state == RL_DEVICE_FAULTY;
        uint32_t number = in_sync ? (uint32_t)d->slot : next;
        RL_ASSERT(number < RL_SB90_DISKS || i >= a->device_count || faulty || d->state == RL_DEVICE_REMOVED || d != own); /* rl_fits_090 */
        if (d->state == RL_DEVICE_REMOVED || number >= RL_SB90_DISKS || faulty != (i >= a->device_count))
            continue;
        next += !in_sync;
        out->disks[number] = (struct rl_sb90_disk){number, d->sb.this_disk.major, d->sb.this_disk.minor, number,
                                                   in_sync                        ? 6u | (d->sb.this_disk.state & 0x600u)
                                                   : d->state == RL_DEVICE_FAULTY ? 1u
                                                                                  : 0u};
        if (d == own) {
            out->this_disk = out->disks[number];
            out->dev_number = number;
        }
    }
}

static void stamp_roles(const rl_array *a, struct rl_superblock *out)
{
    uint32_t top = 0;
    for (uint32_t i = 0; i < RL_SB_DEVS_MAX; i++)
        out->dev_roles[i] = RL_ROLE_SPARE;
    for (uint32_t i = 0; i < a->device_count; i++) {
        const struct device *d = a->devices[i];
        if (d->state == RL_DEVICE_REMOVED)
            continue;
        out->dev_roles[d->sb.dev_number] = d->state == RL_DEVICE_FAULTY ? RL_ROLE_FAULTY : d->slot >= 0 ? (uint16_t)d->slot : RL_ROLE_SPARE;
        top = (uint32_t)rl_max(top, d->sb.dev_number + 1);
    }
    out->max_dev = (uint32_t)rl_max(a->sb.max_dev, top);
}

/* The superblock of device d as of now. */
void rl_metadata_stamp(const rl_array *a, const struct device *d, struct rl_superblock *out)
{
    const uint32_t kept = RL_FEATURE_RAID0_LAYOUT | RL_FEATURE_BITMAP;
    *out = a->sb;
    out->data_offset = d->sb.data_offset;
    out->data_size = d->sb.data_size;
    out->super_offset = d->sb.super_offset;
    out->dev_number = d->sb.dev_number;
    out->corrected_reads = d->sb.corrected_reads + (uint32_t)atomic_load(&d->corrected_reads);
    memcpy(out->device_uuid, d->sb.device_uuid, sizeof out->device_uuid);
    out->devflags = d->sb.devflags;
    out->bblog_shift = d->sb.bblog_shift;
    out->bblog_sectors = d->sb.bblog_sectors;
    out->bblog_offset = d->sb.bblog_offset;
    out->logical_block_bytes = d->sb.logical_block_bytes;
    out->feature_map = a->sb.feature_map & kept;
    out->recovery_offset = RL_MAX_SECTOR;
    out->resync_offset = rl_min(atomic_load(&a->resync), a->resync_durable);
    if (atomic_load(&a->active) && (a->g.parity || a->g.copies > 1))
        out->resync_offset = 0;
    if (d->state == RL_DEVICE_REBUILDING || d->state == RL_DEVICE_REPLACEMENT) {
        out->feature_map |= RL_FEATURE_RECOVERY | (d->state == RL_DEVICE_REPLACEMENT ? RL_FEATURE_REPLACEMENT : 0u);
        out->feature_map |= d->by_bitmap ? RL_FEATURE_RECOVERY_BITMAP : 0u;
        out->recovery_offset = d->durable;
    }
    if (rl_bad_logged(a, d))
        out->feature_map |= RL_FEATURE_BAD_BLOCKS;
    if (a->sb.version == 90)
        stamp_090(a, d, out);
    else
        stamp_roles(a, out);
}

static bool takes_superblock(const struct device *d)
{
    return d->state != RL_DEVICE_FAULTY && d->state != RL_DEVICE_REMOVED;
}

static int write_superblock(const rl_array *a, struct device *d)
{
    _Alignas(RL_BUFFER_ALIGN) uint8_t block[RL_SB_BYTES];
    struct rl_superblock sb;
    int rc = rl_bad_write_log(d); /* I12: before the superblock, which may pass what it names */
    if (rc)
        return rc;
    rl_metadata_stamp(a, d, &sb);
    rl_superblock_encode(&sb, block);
    struct rl_io io[2] = {
        {.member = d->member, .buffer = block, .offset = sb.super_offset * RL_SECTOR, .length = RL_SB_BYTES, .op = RL_OP_WRITE},
        {.member = d->member, .op = RL_OP_FLUSH},
    };
    rl_io_run(&io[0], 1);
    if (io[0].result == 0)
        rl_io_run(&io[1], 1);
    return io[0].result ? io[0].result : io[1].result;
}

/* It must not wrap: a count of 0 would make every superblock the stalest there is. */
static int raise_events(rl_array *a)
{
    if (a->sb.events == UINT64_MAX)
        return rl_fail(EOVERFLOW, "rl_metadata_commit", -1, 0,
                       "the event count of the superblocks is at its end, %llu: the array can be read only; copy its content to a new one",
                       (unsigned long long)a->sb.events);
    uint64_t now = a->wall_ns(a->clock_context);
    a->sb.events++;
    a->sb.utime_s = now / 1000000000u;
    /* never zero: how a later session knows that no kernel has written since (DESIGN.md section 4, checksums) */
    a->sb.utime_us = (uint32_t)rl_max(1, now / 1000 % 1000000);
    return 0;
}

/* What became of a device that was to get its part of a commit. 1: it could not, and is out; -errno: nor may it be out. */
static int judge_update(rl_array *a, uint32_t device, int written)
{
    const struct device *d = a->devices[device];
    if (written == 0)
        return 0;
    if (rl_is_space_error(written)) {
        rl_note_full(a, (int32_t)device);
        return rl_fail(ENOSPC, "rl_metadata_commit", d->slot, 0, "no space for the superblock of %s", d->member->name);
    }
    if (rl_enough_without(a, (int32_t)device)) {
        rl_device_out(a, device, NULL);
        return 1;
    }
    if (written == -ENODEV)
        rl_device_lost(a, device);
    return rl_fail(EIO, "rl_metadata_commit", d->slot, 0, "the superblock of %s, which the content needs, cannot be written",
                   d->member->name);
}

/* Writes the superblock of a device as of the current event count. Results as above. */
static int update_device(rl_array *a, uint32_t device)
{
    struct device *d = a->devices[device];
    int rc = judge_update(a, device, write_superblock(a, d));
    if (rc == 0)
        d->written_events = a->sb.events;
    return rc;
}

/* B4: before any superblock has the current count, all bitmaps have it. A device that cannot take it is out. */
static int update_bitmaps(rl_array *a)
{
    int rc = 0;
    for (uint32_t i = 0; rc >= 0 && i < a->device_count; i++)
        rc = takes_superblock(a->devices[i]) ? judge_update(a, i, rl_bitmap_write_to(a, i)) : 0;
    return rc < 0 ? rc : 0;
}

/* S2: before the count is raised once more, whoever did not get the last one (no space, an error of a member that is needed) gets it now, or it is not raised. */
static int catch_up(rl_array *a)
{
    int rc = update_bitmaps(a);
    for (uint32_t i = 0; rc >= 0 && i < a->device_count; i++) {
        if (takes_superblock(a->devices[i]) && a->devices[i]->written_events < a->sb.events)
            rc = update_device(a, i);
    }
    return rc < 0 ? rc : 0;
}

/* Writes the superblocks of all devices; what cannot take its own is out. Failing of the last that the content needs is the array's failure. */
static int write_superblocks(rl_array *a)
{
    int rc = 0;
    for (bool again = true; again;) {
        again = false;
        rc = update_bitmaps(a);
        if (rc)
            return rc;
        for (uint32_t i = 0; i < a->device_count; i++) {
            int done = takes_superblock(a->devices[i]) ? update_device(a, i) : 0;
            again |= done > 0;
            rc = done < 0 ? done : rc;
        }
        if (rc == 0 && again)
            rc = raise_events(a);
        again &= rc == 0; /* else the failures are recorded by the commit that succeeds (commit_due) */
    }
    if (rc == 0) {
        atomic_store(&a->commit_due, false);
        atomic_store(&a->bitmap_due, false);
    }
    return rc;
}

int rl_metadata_commit(rl_array *a)
{
    int rc = catch_up(a);
    rc = rc ? rc : raise_events(a);
    return rc ? rc : write_superblocks(a);
}

int rl_metadata_commit_led(rl_array *a, uint32_t leader, bool *led)
{
    struct device *d = a->devices[leader];
    int rc = catch_up(a);
    *led = false;
    rc = rc ? rc : raise_events(a);
    rc = rc ? rc : update_bitmaps(a);
    if (rc)
        return rc;
    rc = write_superblock(a, d);
    *led = rc == 0;
    if (*led)
        return write_superblocks(a);
    return rl_fail(rl_is_space_error(rc) ? ENOSPC : EIO, "rl_metadata_commit", d->slot, 0, "the superblock of %s cannot be written",
                   d->member->name);
}

/* Flushes every device in use. Returns the number of failures, which are noted in rq. */
uint64_t rl_flush_devices(rl_array *a, struct request *rq)
{
    struct rl_io io[RL_DEVICES_MAX];
    unsigned count = 0, failures = 0;
    for (uint32_t i = 0; i < a->device_count; i++) {
        if (takes_superblock(a->devices[i]))
            io[count++] = (struct rl_io){.member = a->devices[i]->member, .op = RL_OP_FLUSH, .device = i};
    }
    rl_io_run(io, count);
    for (unsigned i = 0; i < count; i++) {
        if (io[i].result) {
            rl_request_failed(rq, io[i].device, io[i].result);
            failures++;
        }
    }
    return failures;
}

void rl_note_durable(rl_array *a)
{
    for (uint32_t i = 0; i < a->device_count; i++)
        a->devices[i]->durable = atomic_load(&a->devices[i]->recovered);
    a->resync_durable = atomic_load(&a->resync);
    rl_bad_note_durable(a);
}

/* Takes the config lock exclusively with all devices flushed: a first time beside the users, so that the flush that holds them up finds little to do.
 * Returns the number of failures, which are noted in rq. */
uint64_t rl_lock_flushed(rl_array *a, struct request *rq)
{
    pthread_rwlock_rdlock(&a->config);
    uint64_t failures = rl_flush_devices(a, rq);
    pthread_rwlock_unlock(&a->config);
    pthread_rwlock_wrlock(&a->config);
    failures = failures ? failures : rl_flush_devices(a, rq);
    if (failures == 0)
        rl_note_durable(a);
    return failures;
}

int rl_metadata_set_active(rl_array *a)
{
    bool active = atomic_load(&a->active);
    if (active && !atomic_load(&a->bitmap_due))
        return 0;
    atomic_store(&a->active, true);
    int rc = rl_metadata_commit(a);
    if (rc)
        atomic_store(&a->active, active);
    return rc;
}

/* I3. The caller has seen to it that no write is open: config is held exclusively. */
int rl_metadata_set_clean(rl_array *a)
{
    struct request rq = {.a = a};
    bool redundant = a->g.parity || a->g.copies > 1;
    int rc = 0;
    uint64_t failures = rl_flush_devices(a, &rq);
    if (failures == 0)
        rl_note_durable(a);
    if (failures == 0 && !rl_bad_stale(a) && !atomic_load(&a->commit_due) && (!redundant || !atomic_load(&a->active)))
        return 0;
    for (unsigned i = 0; i < rq.failed_count; i++) {
        uint32_t device = rq.failed[i].device;
        if (rl_enough_without(a, (int32_t)device)) {
            rl_device_out(a, device, NULL);
            continue;
        }
        if (rq.failed[i].error == -ENODEV)
            rl_device_lost(a, device);
        rc = rl_fail(EIO, "rl_array_flush", a->devices[device]->slot, 0, "%s cannot be flushed, and the content needs it",
                     a->devices[device]->member->name);
    }
    if (rc) {
        if (failures > 1)
            (void)rl_metadata_commit(a); /* those that are out; what is told is the first trouble */
        return rc;
    }
    if (atomic_load(&a->broken))
        return rl_fail(EIO, "rl_array_close", -1, 0, "the array has failed: it stays marked active");
    if (redundant)
        atomic_store(&a->active, false);
    return rl_metadata_commit(a);
}
