/* io.c: the I/O calls of the API: ranges are checked, requests are shared out to stripe.c or mirror.c, failures are settled before the answer (I1).
 *
 * A read goes to the devices at once, segment by segment, without a lock but config; what that cannot serve takes the slow way, under the stripe's lock.
 * A write first sees to it that the superblocks say `active` (I3), then goes piece by piece; a piece during which a member failed goes on without it (I11).
 * Reads and writes of a sector are linearizable: every read gives what was there at some moment between its begin and its end (tests/c/history.c).
 */
#include "internal.h"

#define BATCH_MAX 64u

static int check_range(const rl_array *a, const char *call, uint64_t length, uint64_t offset)
{
    uint64_t size = rl_array_size(a);
    int rc = rl_enter(a, call);
    if (rc == 0 && (offset > size || length > size - offset))
        return rl_fail(EINVAL, call, -1, offset, "%llu bytes at %llu are not inside the array, which has %llu", (unsigned long long)length,
                       (unsigned long long)offset, (unsigned long long)size);
    return rc;
}

/* The device that serves a segment best: for copies, each in turn for a stretch, write-mostly ones last. -1: only the slow way can. */
static int choose_device(const rl_array *a, const struct rl_place *places, unsigned count, uint64_t sectors, uint64_t offset,
                         uint64_t *sector)
{
    int fallback = -1;
    /* while a copy is doubted, a write may be under way that has reached only some: wait for it, by the slow way */
    if (count > 1 && atomic_load(&a->doubted))
        return -1;
    /* copies that may differ (a crash, no resync yet) are read in the order in which the resync will take them, or a read could change without a write */
    bool agree = (offset / RL_SECTOR) + sectors <= atomic_load(&a->resync);
    unsigned turn = agree ? rl_copy_turn(count, offset) : 0;
    for (unsigned j = 0; j < count; j++) {
        const struct rl_place *p = &places[(turn + j) % count];
        int device = rl_device_for_read(a, p->slot, p->sector, sectors);
        if (device < 0)
            continue;
        bool write_mostly = agree && a->devices[device]->sb.devflags & 1;
        if (!write_mostly || fallback < 0)
            *sector = p->sector;
        if (!write_mostly)
            return device;
        fallback = fallback < 0 ? device : fallback;
    }
    return fallback;
}

/* How many of the bytes are read from one and the same copy, however much of them is asked for at once. Every sector has its copy: were it read now from one and
 * now from another, then of a write that is under way an earlier read could give what a later one does not. */
static uint64_t one_copy_bytes(const rl_array *a, const struct rl_place *places, unsigned count, uint64_t bytes, uint64_t offset)
{
    uint64_t sector = offset / RL_SECTOR, within = offset % RL_SECTOR, resync = atomic_load(&a->resync);
    uint64_t sectors = (within + rl_min(bytes, RL_STRETCH_BYTES - offset % RL_STRETCH_BYTES) + RL_SECTOR - 1) / RL_SECTOR;
    if (resync > sector)
        sectors = rl_min(sectors, resync - sector);
    for (unsigned i = 0; i < count; i++)
        sectors = rl_uniform_run(a, places[i].sector, sectors);
    return rl_min(bytes, sectors * RL_SECTOR - within);
}

/* One segment (within a chunk) of a read: a request to a device, or length 0 if only the slow way can serve it. Returns its bytes. */
static uint64_t read_segment(const rl_array *a, void *buffer, uint64_t length, uint64_t offset, struct rl_io *io)
{
    struct rl_place places[RL_SLOTS_MAX];
    uint64_t run = 0, within = offset % RL_SECTOR, sector = 0;
    unsigned count = (unsigned)rl_geometry_locate(&a->g, offset / RL_SECTOR, places, &run);
    uint64_t bytes = rl_min(length, run * RL_SECTOR - within);
    if (count > 1)
        bytes = one_copy_bytes(a, places, count, bytes, offset);
    int device = choose_device(a, places, count, (within + bytes + RL_SECTOR - 1) / RL_SECTOR, offset, &sector);
    *io = (struct rl_io){.buffer = buffer};
    if (device >= 0)
        *io = rl_device_io(a, (uint32_t)device, RL_OP_READ, buffer, sector * RL_SECTOR + within, bytes);
    return bytes;
}

/* Reads what one batch reaches. -EAGAIN: the slow way is needed for it, and a workspace, for which nobody may wait with a lock in his hand. */
static int read_batch(struct request *rq, char *buffer, uint64_t length, uint64_t offset, uint64_t *done)
{
    rl_array *a = rq->a;
    struct rl_io ios[BATCH_MAX], fast[BATCH_MAX];
    uint64_t at[BATCH_MAX + 1] = {0};
    unsigned count = 0, fast_count = 0;
    for (; count < BATCH_MAX && at[count] < length; count++) {
        at[count + 1] = at[count] + read_segment(a, buffer + at[count], length - at[count], offset + at[count], &ios[count]);
        if (ios[count].length) {
            fast[fast_count] = ios[count];
            fast[fast_count].flags = rq->io_flags;
            fast[fast_count++].tag = (uint16_t)count;
        }
    }
    rl_io_run(fast, fast_count);
    for (unsigned i = 0; i < fast_count; i++) {
        ios[fast[i].tag].length = fast[i].result ? 0 : fast[i].length;
        if (fast[i].result == -ENODEV)
            rl_request_failed(rq, fast[i].device, fast[i].result);
    }
    for (unsigned i = 0; i < count; i++) {
        if (ios[i].length)
            continue;
        if (!rq->w && !(rq->w = rl_workspace_try(a)))
            return -EAGAIN;
        int rc = a->g.parity ? rl_stripe_read(rq, buffer + at[i], at[i + 1] - at[i], offset + at[i])
                             : rl_mirror_read(rq, buffer + at[i], at[i + 1] - at[i], offset + at[i]);
        if (rc)
            return rc;
    }
    *done = at[count];
    return 0;
}

int rl_array_pread(rl_array *a, void *buffer, uint64_t length, uint64_t offset)
{
    return rl_array_read(a, buffer, length, offset, 0);
}

int rl_array_read(rl_array *a, void *buffer, uint64_t length, uint64_t offset, uint32_t io_flags)
{
    struct request rq = {.a = a, .io_flags = (uint8_t)io_flags};
    int rc = check_range(a, "rl_array_pread", length, offset);
    for (uint64_t done = 0, step = 0; rc == 0 && done < length; done += step) {
        pthread_rwlock_rdlock(&a->config);
        rc = read_batch(&rq, (char *)buffer + done, length - done, offset + done, &step);
        pthread_rwlock_unlock(&a->config);
        if (rc == -EAGAIN) {
            rq.w = rl_workspace_get(a);
            rc = rq.w ? 0 : rl_fail(ENOMEM, "rl_array_pread", -1, offset, "no memory");
            step = 0;
        }
        /* what was read is right whether or not the failure could be recorded: a broken array says so to its writers */
        if (rq.failed_count)
            (void)rl_request_settle(&rq);
    }
    if (rq.w)
        rl_workspace_put(a, rq.w);
    if (rc == 0) {
        atomic_fetch_add_explicit(&a->reads, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&a->read_bytes, length, memory_order_relaxed);
    }
    return rc;
}

int rl_ensure_active(rl_array *a)
{
    if (atomic_load(&a->active) && !atomic_load(&a->bitmap_due))
        return 0;
    pthread_rwlock_wrlock(&a->config);
    int rc = rl_metadata_set_active(a);
    pthread_rwlock_unlock(&a->config);
    return rc;
}

/* ---- zeros -------------------------------------------------------------------------------------------------------- */

static const void *zeros(void)
{
    static _Alignas(RL_BUFFER_ALIGN) char block[RL_SLICE_BYTES]; /* never written to */
    return block;
}

static void write_zeros(struct rl_io *io)
{
    uint64_t step = 0;
    io->result = 0;
    for (uint64_t done = 0; io->result == 0 && done < io->length; done += step) {
        step = rl_min(io->length - done, RL_SLICE_BYTES);
        struct rl_io part = {
            .member = io->member, .op = RL_OP_WRITE, .buffer = (void *)(uintptr_t)zeros(), .offset = io->offset + done, .length = step};
        rl_io_run(&part, 1);
        io->result = part.result;
    }
}

void rl_zero_run(struct rl_io *ios, unsigned count, uint32_t flags)
{
    for (unsigned i = 0; i < count; i++) {
        ios[i].op = RL_OP_ZERO;
        ios[i].flags = (uint8_t)flags;
    }
    rl_io_run(ios, count);
    for (unsigned i = 0; i < count; i++) {
        if (ios[i].result == -EOPNOTSUPP)
            write_zeros(&ios[i]);
    }
}

/* ---- no space ----------------------------------------------------------------------------------------------------- */

/* The array turns read-only. Its service (service.c) lets writes in again. */
void rl_note_full(rl_array *a, int32_t device)
{
    atomic_store(&a->full_ns, a->clock_ns(a->clock_context));
    if (atomic_exchange(&a->full, true))
        return;
    atomic_store(&a->full_device, device);
    rl_event_post(a, RL_EVENT_NO_SPACE, device, 0, "no space is left under a member: nothing is written until there is");
}

/* ---- changes ------------------------------------------------------------------------------------------------------ */

/* What is to become of a range: the caller's bytes, or with NULL zeros. */
struct change {
    const char *buffer;
    bool stable;
    uint32_t zero_flags;
};

static int64_t change_piece(struct request *rq, struct workspace *w, const struct change *c, uint64_t done, uint64_t length,
                            uint64_t offset)
{
    rl_array *a = rq->a;
    bool parity = a->g.parity > 0, stable = c->stable || !c->buffer;
    const char *source = c->buffer ? c->buffer + done : zeros();
    if (!c->buffer) {
        int64_t step = parity ? rl_stripe_zero(rq, w, length, offset, c->zero_flags) : rl_mirror_zero(rq, w, length, offset, c->zero_flags);
        if (step != -EOPNOTSUPP)
            return step;
        /* written, up to where the next stripe or block begins */
        uint64_t unit = parity ? (uint64_t)a->g.data * a->g.chunk_sectors * RL_SECTOR : a->block_bytes;
        length = rl_min(rl_min(length, unit - offset % unit), RL_SLICE_BYTES);
    }
    return parity ? rl_stripe_write(rq, w, source, length, offset, stable) : rl_mirror_write(rq, w, source, length, offset, stable);
}

static int change_all(rl_array *a, struct workspace *w, const struct change *c, uint64_t length, uint64_t offset)
{
    struct request rq = {.a = a};
    int rc = 0;
    for (uint64_t done = 0; rc == 0 && done < length;) {
        int64_t step = 0;
        rc = rl_ensure_active(a);
        if (rc)
            break;
        pthread_rwlock_rdlock(&a->config);
        if (atomic_load(&a->active) && !atomic_load(&a->bitmap_due)) { /* else it went clean in between: once more */
            struct bitmap_hold hold;
            step = rl_bitmap_begin(&rq, length - done, offset + done, &hold); /* B1 */
            if (step == 0)
                step = change_piece(&rq, w, c, done, length - done, offset + done);
            rl_bitmap_end(&hold);
        }
        rl_request_doubted(&rq);
        pthread_rwlock_unlock(&a->config);
        int settled = rl_request_settle(&rq); /* I1 */
        rc = step < 0 ? (int)step : settled;
        done += step > 0 ? (uint64_t)step : 0;
    }
    return rc;
}

static int change(rl_array *a, const char *call, const struct change *c, uint64_t length, uint64_t offset)
{
    int rc = check_range(a, call, length, offset);
    if (rc)
        return rc;
    if (a->flags & RL_ARRAY_READ_ONLY)
        return rl_fail(EROFS, call, -1, offset, "the array is open read-only");
    if (atomic_load(&a->broken))
        return rl_fail(EIO, call, -1, offset, "the array has failed: more members are gone than it bears");
    if (atomic_load(&a->full) && !(c->zero_flags & RL_ZERO_DISCARD)) /* what gives space back may try */
        return rl_fail(ENOSPC, call, -1, offset, "no space is left under a member: nothing is written until there is");
    struct workspace *w = rl_workspace_get(a);
    if (!w)
        return rl_fail(ENOMEM, call, -1, offset, "no memory");
    atomic_fetch_add(&a->open_writes, 1); /* I3: not clean before it is settled */
    rc = change_all(a, w, c, length, offset);
    rl_workspace_put(a, w);
    atomic_store(&a->last_write_ns, a->clock_ns(a->clock_context));
    atomic_fetch_sub(&a->open_writes, 1);
    if (rc == 0) {
        atomic_fetch_add_explicit(&a->writes, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&a->written_bytes, length, memory_order_relaxed);
    }
    return rc;
}

int rl_array_pwrite(rl_array *a, const void *buffer, uint64_t length, uint64_t offset, uint32_t flags)
{
    RL_ASSERT(buffer || length == 0);
    struct change c = {.buffer = buffer, .stable = flags & RL_BUFFER_STABLE};
    return length ? change(a, "rl_array_pwrite", &c, length, offset) : check_range(a, "rl_array_pwrite", length, offset);
}

int rl_array_zero(rl_array *a, uint64_t length, uint64_t offset, uint32_t flags)
{
    struct change c = {.zero_flags = flags};
    return change(a, "rl_array_zero", &c, length, offset);
}

int rl_array_flush(rl_array *a)
{
    struct request rq = {.a = a};
    int rc = rl_enter(a, "rl_array_flush");
    if (rc || a->flags & RL_ARRAY_READ_ONLY)
        return rc;
    pthread_rwlock_rdlock(&a->config);
    uint64_t failures = rl_flush_devices(a, &rq);
    pthread_rwlock_unlock(&a->config);
    rc = rl_request_settle(&rq);
    if (rc == 0 && failures > RL_FAILED_MAX)
        return rl_fail(EIO, "rl_array_flush", -1, 0, "%llu members failed to flush at once", (unsigned long long)failures);
    if (rc == 0 && atomic_load(&a->broken))
        return rl_fail(EIO, "rl_array_flush", -1, 0, "the array has failed: more members are gone than it bears");
    return rc;
}
