/* stripe.c: levels with parity.
 *
 * A write is cut into rectangles: some whole data chunks of one stripe, or a part of one; at most RL_SLICE_BYTES high. Each is done under the stripe's lock:
 *
 *   look ──► read what is needed (rl_stripe_fetch) ──► compute all new parity in memory ──► write data and parity at once ──► judge
 *              │ a member died: nothing was written yet; at once again, without it (I11)       │ a member died: the others hold all that is needed to
 *              ▼                                                                               ▼ compute its block; settle, then acknowledge (I1)
 *
 *   I7  Nothing is written before everything that will be written is in memory: so a member that dies during the writes costs nothing but itself.
 *   I8  The blocks of an unusable member above its `recovered` point are never written: the rebuild will, under the same lock.
 *   I10 In a degraded stripe, a write that fails in part and cannot be completed by failing a member is undone: else the blocks that can only be computed would change.
 *   I14 Where a stripe lacks more blocks than its parity makes up for, what is written is written, and the parity marked as bad: none is left that does not fit.
 *   I9  Where parity is not known to be in sync (above `resync`), it is recomputed from the data, never updated.
 */
#include "internal.h"

#define STRIP_BYTES 16384u /* copied and computed on while in the first-level cache */

pthread_mutex_t *rl_stripe_lock(rl_array *a, uint64_t number)
{
    return &a->stripe_lock[number % RL_STRIPE_LOCKS];
}

void rl_stripe_look(const rl_array *a, uint64_t number, struct stripe *st)
{
    st->number = number;
    st->np = a->g.parity;
    st->nd = (unsigned)rl_geometry_stripe(&a->g, number, st->slot_of, st->position);
}

static uint64_t stripe_sector(const rl_array *a, const struct stripe *st, uint64_t low)
{
    return st->number * a->g.chunk_sectors + low / RL_SECTOR;
}

/* ---- shared with mirror.c ----------------------------------------------------------------------------------------- */

void rl_heal(struct request *rq, uint32_t device, void *good, uint64_t length, uint64_t offset)
{
    rl_array *a = rq->a;
    struct device *d = a->devices[device];
    _Alignas(RL_BUFFER_ALIGN) char back[RL_BUFFER_ALIGN];
    RL_ASSERT(length <= sizeof back);
    atomic_fetch_add(&d->read_errors, 1);
    if (a->flags & RL_ARRAY_READ_ONLY) /* I6 */
        return;
    struct rl_io io = rl_device_io(a, device, RL_OP_WRITE, good, offset, length);
    rl_io_run(&io, 1);
    if (io.result == 0) {
        io = rl_device_io(a, device, RL_OP_READ, back, offset, length);
        io.flags = RL_IO_DEVICE;
        rl_io_run(&io, 1);
    }
    if (rl_is_space_error(io.result)) /* stays unreadable; not the member's fault */
        return;
    if (rl_is_medium_error(io.result) && rl_bad_tolerable(a, device, offset / RL_SECTOR, length / RL_SECTOR) &&
        rl_bad_mark(a, device, offset / RL_SECTOR, length / RL_SECTOR)) {
        rl_event_post(a, RL_EVENT_BAD_BLOCK, (int32_t)device, offset, "a block that can be neither read nor written is marked as bad");
        return;
    }
    if (io.result || memcmp(back, good, length) != 0) {
        rl_request_failed(rq, device, io.result ? io.result : -EIO);
        return;
    }
    atomic_fetch_add(&d->corrected_reads, length / RL_SECTOR);
    atomic_fetch_add(&a->corrected_reads, length / RL_SECTOR);
    rl_event_post(a, RL_EVENT_READ_CORRECTED, (int32_t)device, offset, "an unreadable block was rewritten from the redundancy");
}

/* Finds out which blocks of failed writes it is that cannot be written; members for which that is no answer are failed. */
static void judge_failures(struct request *rq, struct rl_io *ios, unsigned count, struct losses *lost)
{
    memset(lost->hard, 0, sizeof lost->hard);
    for (unsigned i = 0; i < count; i++) {
        unsigned before = lost->count;
        if (ios[i].result == 0)
            continue;
        lost->hard[i] = !rl_bad_narrow(rq, ios, i, lost);
        if (lost->hard[i]) {
            lost->count = before;
            rl_request_failed(rq, ios[i].device, ios[i].result);
        } else if (lost->count == before) {
            ios[i].result = 0; /* it was not a block that failed */
        }
    }
}

int rl_judge_writes(struct request *rq, struct rl_io *ios, unsigned count, rl_bears *bears, const void *context, struct losses *lost)
{
    unsigned written = 0, no_space = 0;
    lost->count = 0;
    for (unsigned i = 0; i < count; i++) {
        written += ios[i].result == 0;
        if (rl_is_space_error(ios[i].result)) {
            no_space++;
            rl_note_full(rq->a, (int32_t)ios[i].device);
        }
    }
    for (unsigned i = 0; no_space && i < count; i++) {
        if (ios[i].result && !rl_is_space_error(ios[i].result))
            rl_request_failed(rq, ios[i].device, ios[i].result);
    }
    if (no_space) {
        return rl_fail(ENOSPC, "rl_array_pwrite", -1, 0, "no space is left under a member; no member was failed for it");
    }
    if (written < count) {
        judge_failures(rq, ios, count, lost);
        for (unsigned l = 0; l < lost->count; l++) {
            if (!bears(rq->a, context, ios, count, lost, l))
                return rl_fail(EIO, "rl_array_pwrite", -1, 0, "a block cannot be written, and nothing is left to make up for it");
        }
        written = 0;
        for (unsigned i = 0; i < count; i++)
            written += !lost->hard[i];
    }
    return written ? 0 : rl_fail(EIO, "rl_array_pwrite", -1, 0, "no member took the write");
}

/* ---- fetch: blocks of a stripe, from the members or by the code --------------------------------------------------- */

struct fetch {
    const struct stripe *st;
    struct workspace *w;
    uint64_t low, length, at; /* bytes in the chunk; where in the workspace's blocks they go */
    const uint8_t *want;
    uint8_t io_flags;
    uint8_t have[RL_VECTOR_MAX], gone[RL_VECTOR_MAX], unreadable[RL_VECTOR_MAX], need[RL_VECTOR_MAX];
    bool decode;
};

/* Which blocks must be read: the wanted ones, or with one of them gone all that the code needs. */
static int fetch_plan(const rl_array *a, struct fetch *f)
{
    unsigned n = f->st->nd + f->st->np, lost = 0, parities = 0;
    f->decode = false;
    for (unsigned i = 0; i < n; i++) {
        f->need[i] = f->want[i] && f->st->slot_of[i] >= 0;
        f->decode |= f->need[i] && f->gone[i];
        lost += i < f->st->nd && f->gone[i];
    }
    for (unsigned i = 0; f->decode && i < n; i++) {
        bool parity = i >= f->st->nd;
        if (!f->gone[i] && f->st->slot_of[i] >= 0 && (!parity || parities < lost))
            f->need[i] = 1;
        parities += parity && !f->gone[i];
    }
    if (f->decode && parities < lost)
        return rl_fail(EIO, "rl_array", -1, stripe_sector(a, f->st, f->low) * RL_SECTOR,
                       "stripe %llu: %u data blocks cannot be read, and %u parities are left to compute them from",
                       (unsigned long long)f->st->number, lost, parities);
    return 0;
}

/* What the device of a slot cannot read its replacement may hold already. */
static bool read_second(struct request *rq, struct rl_io io, uint32_t slot, uint64_t sector)
{
    int32_t second = rq->a->replacement[slot];
    if (second < 0 || (int32_t)io.device == second || !rl_device_usable(rq->a, (uint32_t)second, sector, io.length / RL_SECTOR))
        return false;
    uint8_t flags = io.flags;
    io = rl_device_io(rq->a, (uint32_t)second, RL_OP_READ, io.buffer, sector * RL_SECTOR, io.length);
    io.flags = flags;
    rl_io_run(&io, 1);
    if (io.result == -ENODEV)
        rl_request_failed(rq, io.device, io.result);
    return io.result == 0;
}

/* Reads what is needed and not there yet. 1: something failed, plan anew; -EAGAIN: part of it cannot be read, go block by block. */
static int fetch_read(struct request *rq, struct fetch *f)
{
    rl_array *a = rq->a;
    unsigned count = 0, failures = 0;
    uint64_t sector = stripe_sector(a, f->st, f->low);
    for (unsigned i = 0; i < f->st->nd + f->st->np; i++) {
        if (!f->need[i] || f->have[i] || f->gone[i])
            continue;
        int device = rl_device_for_read(a, (uint32_t)f->st->slot_of[i], sector, f->length / RL_SECTOR);
        char *block = rl_workspace_block(f->w, &f->w->block[i]);
        if (!block)
            return rl_fail(ENOMEM, "rl_array", -1, 0, "no memory");
        if (device < 0) { /* somebody has just found it failed (I11) */
            f->gone[i] = 1;
            failures++;
            continue;
        }
        f->w->io[count] = rl_device_io(a, (uint32_t)device, RL_OP_READ, block + f->at, sector * RL_SECTOR, f->length);
        f->w->io[count].flags = f->io_flags;
        f->w->io[count++].tag = (uint16_t)i;
    }
    rl_io_run(f->w->io, count);
    for (unsigned j = 0; j < count; j++) {
        const struct rl_io *io = &f->w->io[j];
        f->have[io->tag] = io->result == 0;
        if (io->result == 0)
            continue;
        if (io->result == -ENODEV)
            rl_request_failed(rq, io->device, io->result);
        else if (f->length > a->block_bytes)
            return -EAGAIN;
        else
            f->unreadable[io->tag] = 1;
        f->have[io->tag] = read_second(rq, *io, (uint32_t)f->st->slot_of[io->tag], sector);
        f->gone[io->tag] = !f->have[io->tag];
        failures += f->gone[io->tag];
    }
    return failures > 0;
}

static int fetch_decode(const rl_array *a, struct fetch *f)
{
    void *blocks[RL_VECTOR_MAX];
    uint16_t lost[RL_VECTOR_MAX];
    unsigned lost_count = 0, nd = f->st->nd;
    for (unsigned i = 0; i < nd + f->st->np; i++) {
        bool gone = f->st->slot_of[i] >= 0 && f->gone[i], wanted = gone && (f->want[i] || f->unreadable[i]);
        char *block = wanted ? rl_workspace_block(f->w, &f->w->block[i]) : f->w->block[i];
        if (wanted && !block)
            return rl_fail(ENOMEM, "rl_array", -1, 0, "no memory");
        /* lost data count whether they are wanted or not; what is NULL is not computed */
        blocks[i] = wanted || f->have[i] ? block + f->at : NULL;
        if (gone && (i < nd || wanted))
            lost[lost_count++] = (uint16_t)i;
    }
    int rc = rl_code_recover(a->kernel, nd, f->st->np, f->length, blocks, lost_count, lost);
    return rc ? rl_fail(EIO, "rl_array", -1, 0, "stripe %llu cannot be reconstructed", (unsigned long long)f->st->number) : 0;
}

static int fetch_once(struct request *rq, struct fetch *f)
{
    rl_array *a = rq->a;
    uint64_t sector = stripe_sector(a, f->st, f->low);
    unsigned n = f->st->nd + f->st->np;
    memset(f->have, 0, sizeof f->have);
    memset(f->unreadable, 0, sizeof f->unreadable);
    for (unsigned i = 0; i < n; i++)
        f->gone[i] = f->st->slot_of[i] >= 0 && rl_device_for_read(a, (uint32_t)f->st->slot_of[i], sector, f->length / RL_SECTOR) < 0;
    int rc = 1;
    while (rc > 0) {
        rc = fetch_plan(a, f);
        rc = rc ? rc : fetch_read(rq, f);
    }
    if (rc == 0 && f->decode)
        rc = fetch_decode(a, f);
    for (unsigned i = 0; rc == 0 && i < n; i++) {
        int device = f->unreadable[i] ? rl_device_for_read(a, (uint32_t)f->st->slot_of[i], sector, f->length / RL_SECTOR) : -1;
        if (device >= 0)
            rl_heal(rq, (uint32_t)device, (char *)f->w->block[i] + f->at, f->length, sector * RL_SECTOR);
    }
    return rc;
}

int rl_stripe_fetch(struct request *rq, const struct stripe *st, struct workspace *w, uint64_t low, uint64_t length, uint64_t at,
                    const uint8_t *want, uint8_t io_flags)
{
    struct fetch f = {.st = st, .w = w, .want = want, .io_flags = io_flags};
    for (uint64_t done = 0; done < length; done += f.length) {
        f.low = low + done;
        f.at = at + done;
        f.length = rl_uniform_run(rq->a, stripe_sector(rq->a, st, f.low), (length - done) / RL_SECTOR) * RL_SECTOR;
        int rc = fetch_once(rq, &f);
        if (rc == -EAGAIN) {
            f.length = rq->a->block_bytes;
            rc = fetch_once(rq, &f);
        }
        if (rc)
            return rc;
    }
    return 0;
}

int rl_stripe_read(struct request *rq, void *buffer, uint64_t length, uint64_t offset)
{
    rl_array *a = rq->a;
    uint64_t chunk_bytes = (uint64_t)a->g.chunk_sectors * RL_SECTOR, chunk = offset / chunk_bytes, start = offset % chunk_bytes;
    struct stripe st;
    uint8_t want[RL_VECTOR_MAX] = {0};
    struct workspace *w = rq->w;
    rl_stripe_look(a, chunk / a->g.data, &st);
    unsigned index = st.position[chunk % a->g.data];
    want[index] = 1;
    int rc = 0;
    pthread_mutex_lock(rl_stripe_lock(a, st.number));
    for (uint64_t done = 0, step = 0; rc == 0 && done < length; done += step) {
        uint64_t low = rl_round_down(start + done, a->block_bytes);
        uint64_t high = rl_min(rl_round_up(start + length, a->block_bytes), low + RL_SLICE_BYTES);
        rc = rl_stripe_fetch(rq, &st, w, low, high - low, 0, want, rq->io_flags);
        step = rl_min(high - (start + done), length - done);
        if (rc == 0)
            memcpy((char *)buffer + done, (char *)w->block[index] + (start + done - low), step);
    }
    pthread_mutex_unlock(rl_stripe_lock(a, st.number));
    return rc;
}

/* ---- write -------------------------------------------------------------------------------------------------------- */

struct rect {
    struct stripe st;
    unsigned first, columns;  /* data chunks, in array order */
    uint64_t low, high;       /* the caller's bytes in each chunk */
    uint64_t from, to;        /* the same, rounded out to blocks */
    const char *source;       /* of the first column; the next is a chunk further */
    uint64_t chunk_bytes;
    bool stable, edges;       /* edges: from or to differ: old bytes must be kept */
    uint8_t touched[RL_VECTOR_MAX];
    uint8_t live[RL_VECTOR_MAX], open[RL_VECTOR_MAX]; /* can be read; can be written, which a bad block can be too */
    uint8_t put[RL_VECTOR_MAX]; /* will be written */
    const char *source_of[RL_VECTOR_MAX];
    const void *final[RL_VECTOR_MAX]; /* what will be written */
};

static int rect_look(const rl_array *a, struct rect *r)
{
    unsigned homeless = 0, lost = 0, parities = 0;
    uint64_t sector = stripe_sector(a, &r->st, r->from), sectors = (r->to - r->from) / RL_SECTOR;
    memset(r->touched, 0, sizeof r->touched);
    for (unsigned j = 0; j < r->columns; j++) {
        unsigned i = r->st.position[r->first + j];
        r->touched[i] = 1;
        r->source_of[i] = r->source ? r->source + j * r->chunk_bytes : NULL;
    }
    for (unsigned i = 0; i < r->st.nd + r->st.np; i++) {
        int slot = r->st.slot_of[i];
        r->live[i] = slot >= 0 && rl_device_for_read(a, (uint32_t)slot, sector, sectors) >= 0;
        r->open[i] = slot >= 0 && rl_slot_open(a, (uint32_t)slot, sector, sectors);
        r->put[i] = r->open[i] && (r->touched[i] || i >= r->st.nd);
        homeless += slot >= 0 && r->touched[i] && !r->open[i];
        lost += i < r->st.nd && slot >= 0 && !r->put[i] && !r->live[i];
        parities += i >= r->st.nd && r->open[i];
    }
    if (homeless && lost > parities) /* what has no device of its own would be nowhere */
        return rl_fail(EIO, "rl_array_pwrite", -1, sector * RL_SECTOR, "more members are missing than the level bears");
    return 0;
}

/* Which way reads less: the old data and parity (update), or all the other data (recompute)? */
static bool rect_updates(const rl_array *a, const struct rect *r)
{
    unsigned parities = 0, update = r->columns, recompute = 0;
    bool touched_lost = false, other_lost = false, bad_parity = false;
    for (unsigned i = 0; i < r->st.nd; i++) {
        if (r->st.slot_of[i] < 0)
            continue;
        touched_lost |= r->touched[i] && !r->live[i];
        other_lost |= (!r->touched[i] || r->edges) && !r->live[i];
        recompute += !r->touched[i] || r->edges;
    }
    for (unsigned i = r->st.nd; i < r->st.nd + r->st.np; i++) {
        parities += r->live[i];
        bad_parity |= r->open[i] && !r->live[i];
    }
    if (parities == 0 && !bad_parity)
        return true; /* nothing to keep true */
    if (bad_parity && !other_lost)
        return false; /* it is good again with this write */
    uint64_t end = stripe_sector(a, &r->st, r->to);
    if (touched_lost || end > atomic_load(&a->resync)) /* I9 */
        return false;
    return other_lost || update + parities < recompute;
}

/* Old data and parity in, new ones out, in place; strip by strip, so that the caller's bytes are read once. */
static int rect_update(struct request *rq, struct workspace *w, struct rect *r)
{
    uint8_t want[RL_VECTOR_MAX] = {0};
    void *parity[RL_PARITY_MAX] = {0};
    unsigned parities = 0;
    for (unsigned p = 0; p < r->st.np; p++)
        parities += want[r->st.nd + p] = r->put[r->st.nd + p] = r->live[r->st.nd + p]; /* a bad one stays bad */
    for (unsigned i = 0; i < r->st.nd; i++)
        want[i] = r->touched[i] && (parities || r->edges);
    int rc = rl_stripe_fetch(rq, &r->st, w, r->from, r->to - r->from, 0, want, 0);
    char *scratch = rl_workspace_block(w, &w->fresh[0]);
    if (rc || !scratch)
        return rc ? rc : rl_fail(ENOMEM, "rl_array_pwrite", -1, 0, "no memory");
    bool in_place = !r->edges && r->stable;
    for (unsigned i = 0; i < r->st.nd; i++) {
        if (!r->touched[i])
            continue;
        char *old_data = rl_workspace_block(w, &w->block[i]);
        if (!old_data)
            return rl_fail(ENOMEM, "rl_array_pwrite", -1, 0, "no memory");
        for (uint64_t at = r->low - r->from, step = 0; at < r->high - r->from; at += step) {
            const char *source = r->source_of[i] + (at - (r->low - r->from));
            step = rl_min(STRIP_BYTES, r->high - r->from - at);
            if (!in_place)
                source = memcpy(scratch, source, step);
            for (unsigned p = 0; p < r->st.np; p++)
                parity[p] = r->live[r->st.nd + p] ? (char *)w->block[r->st.nd + p] + at : NULL;
            if (parities)
                rl_code_update(rq->a->kernel, i, r->st.np, step, old_data + at, source, parity);
            if (!in_place)
                memcpy(old_data + at, source, step);
        }
        r->final[i] = in_place ? r->source_of[i] : old_data;
    }
    for (unsigned p = 0; p < r->st.np; p++)
        r->final[r->st.nd + p] = w->block[r->st.nd + p];
    return 0;
}

/* All data of the rectangle in memory, parity anew; strip by strip as above. */
static int rect_recompute(struct request *rq, struct workspace *w, struct rect *r)
{
    uint8_t want[RL_VECTOR_MAX] = {0};
    void *blocks[RL_VECTOR_MAX];
    unsigned nd = r->st.nd, np = r->st.np;
    bool in_place = !r->edges && r->stable;
    for (unsigned i = 0; i < nd; i++)
        want[i] = !r->touched[i] || r->edges;
    int rc = rl_stripe_fetch(rq, &r->st, w, r->from, r->to - r->from, 0, want, 0);
    if (rc)
        return rc;
    for (unsigned i = 0; i < nd + np; i++) {
        void **own = i < nd ? &w->block[i] : &w->fresh[i - nd];
        bool used = i < nd ? r->st.slot_of[i] >= 0 && !(r->touched[i] && in_place) : r->open[i];
        r->final[i] = used ? rl_workspace_block(w, own) : i < nd && r->touched[i] ? r->source_of[i] : NULL;
        if (used && !r->final[i])
            return rl_fail(ENOMEM, "rl_array_pwrite", -1, 0, "no memory");
    }
    uint64_t shift = r->low - r->from;
    for (unsigned i = 0; i < nd && r->edges; i++) {
        if (r->touched[i])
            memcpy((char *)w->block[i] + shift, r->source_of[i], r->high - r->low);
    }
    for (uint64_t at = 0, step = 0; at < r->to - r->from; at += step) {
        step = rl_min(STRIP_BYTES, r->to - r->from - at);
        for (unsigned i = 0; i < nd + np; i++) {
            if (i < nd && r->touched[i] && !r->edges && !in_place)
                memcpy((char *)w->block[i] + at, r->source_of[i] + at, step);
            blocks[i] = r->final[i] ? (char *)(uintptr_t)r->final[i] + at : NULL;
        }
        rl_code_generate(rq->a->kernel, nd, np, step, blocks);
    }
    return 0;
}

static unsigned rect_writes(const rl_array *a, struct workspace *w, const struct rect *r)
{
    unsigned n = 0;
    uint64_t sector = stripe_sector(a, &r->st, r->from), length = r->to - r->from;
    for (unsigned i = 0; i < r->st.nd + r->st.np; i++) {
        if (!r->put[i])
            continue;
        unsigned added = rl_slot_writes(a, (uint32_t)r->st.slot_of[i], (void *)(uintptr_t)r->final[i], sector, length, &w->io[n]);
        for (; added > 0; added--)
            w->io[n++].tag = (uint16_t)i;
    }
    return n;
}

/* I10: is there a block that can only be computed? A write that fails in part would change it to what nobody has ever written: most of all (*untouched) one that is
 * not written at all. */
static bool rect_fragile(const struct rect *r, bool *untouched)
{
    bool fragile = *untouched = false;
    for (unsigned i = 0; i < r->st.nd; i++) {
        bool lost = r->st.slot_of[i] >= 0 && !r->live[i];
        fragile |= lost;
        *untouched |= lost && (!r->touched[i] || r->edges);
    }
    return fragile;
}

/* Puts the old blocks back under a write that failed in part. A device that did not take the new ones whole may have taken some: those are found by comparison, for
 * writing the others again could fail again. */
static int rect_undo(struct request *rq, const struct rect *r, struct workspace *old, struct rl_io *ios, unsigned count)
{
    uint64_t block = rq->a->block_bytes;
    _Alignas(RL_BUFFER_ALIGN) char now[RL_BUFFER_ALIGN];
    for (unsigned j = 0; j < count; j++) {
        if (!r->live[ios[j].tag]) /* it was bad before, and stays so */
            continue;
        char *before = old->block[ios[j].tag];
        uint64_t step = ios[j].result ? block : ios[j].length;
        for (uint64_t at = 0; at < ios[j].length; at += step) {
            struct rl_io io = ios[j];
            io.offset += at;
            io.length = step;
            io.buffer = now;
            io.op = RL_OP_READ;
            if (ios[j].result)
                rl_io_run(&io, 1);
            if (ios[j].result && io.result == 0 && memcmp(now, before + at, step) == 0)
                continue;
            io.buffer = before + at;
            io.op = RL_OP_WRITE;
            rl_io_run(&io, 1);
            uint64_t sector = io.offset / RL_SECTOR - rq->a->devices[io.device]->sb.data_offset;
            if (rl_is_medium_error(io.result) && rl_bad_mark(rq->a, io.device, sector, step / RL_SECTOR))
                rl_event_post(rq->a, RL_EVENT_BAD_BLOCK, (int32_t)io.device, sector * RL_SECTOR,
                              "a block that the content needs can neither be written nor put back: it is marked as bad");
            else if (io.result)
                return io.result;
        }
    }
    return 0;
}

/* The data of a stripe as they are after a write that failed in part: what the members hold, and for a block that none can be asked for what was to be written. Not
 * computed from parity, which may fit neither the old blocks nor the new ones. */
static int rect_gather(struct request *rq, struct workspace *w, const struct rect *r, void **blocks)
{
    rl_array *a = rq->a;
    uint64_t length = r->to - r->from, sector = stripe_sector(a, &r->st, r->from);
    for (unsigned i = 0; i < r->st.nd; i++) {
        int slot = r->st.slot_of[i], device = slot < 0 ? -1 : rl_device_for_read(a, (uint32_t)slot, sector, length / RL_SECTOR);
        blocks[i] = slot < 0 ? NULL : rl_workspace_block(w, &w->block[i]);
        if (slot < 0)
            continue;
        if (!blocks[i])
            return rl_fail(ENOMEM, "rl_array_pwrite", -1, 0, "no memory");
        if (device >= 0) {
            struct rl_io io = rl_device_io(a, (uint32_t)device, RL_OP_READ, blocks[i], sector * RL_SECTOR, length);
            rl_io_run(&io, 1);
            if (io.result == 0)
                continue;
        }
        if (!r->touched[i] || (device >= 0 && r->final[i] == blocks[i])) /* the read has spoilt it */
            return -EIO;
        if (!r->final[i])
            memset(blocks[i], 0, length);
        else if (r->final[i] != blocks[i])
            memcpy(blocks[i], r->final[i], length);
    }
    return 0;
}

/* After a failed write of a stripe that had all its data: makes parity fit them as they are now. */
static int rect_restripe(struct request *rq, struct workspace *w, const struct rect *r)
{
    rl_array *a = rq->a;
    void *blocks[RL_VECTOR_MAX] = {0};
    unsigned nd = r->st.nd, np = r->st.np, n = 0;
    uint64_t length = r->to - r->from, sector = stripe_sector(a, &r->st, r->from);
    int rc = rect_gather(rq, w, r, blocks);
    for (unsigned p = 0; rc == 0 && p < np; p++) {
        blocks[nd + p] = r->live[nd + p] ? rl_workspace_block(w, &w->fresh[p]) : NULL;
        if (r->live[nd + p] && !blocks[nd + p])
            rc = rl_fail(ENOMEM, "rl_array_pwrite", -1, 0, "no memory");
    }
    if (rc)
        return rc;
    rl_code_generate(a->kernel, nd, np, length, blocks);
    for (unsigned i = nd; i < nd + np; i++) {
        if (r->live[i])
            n += rl_slot_writes(a, (uint32_t)r->st.slot_of[i], blocks[i], sector, length, &w->io[n]);
    }
    rl_io_run(w->io, n);
    for (unsigned j = 0; j < n; j++)
        rc = rc ? rc : w->io[j].result;
    return rc;
}

/* Marks parity as bad, all that may be written. false: some cannot be. */
static bool rect_disown_parity(const struct request *rq, const struct rect *r)
{
    rl_array *a = rq->a;
    uint64_t sector = stripe_sector(a, &r->st, r->from), length = r->to - r->from;
    bool marked = true;
    for (unsigned i = r->st.nd; i < r->st.nd + r->st.np; i++) {
        struct rl_io io[2];
        unsigned n = r->open[i] ? rl_slot_writes(a, (uint32_t)r->st.slot_of[i], NULL, sector, length, io) : 0;
        for (unsigned j = 0; marked && j < n; j++)
            marked = rl_bad_mark(a, io[j].device, sector, length / RL_SECTOR);
    }
    return marked;
}

/* Parity may fit nothing now. Where every data block can be read itself a resync mends that. Else nothing may be computed from it: it is marked as bad, and the block
 * that is with nobody reads as an error. false: it cannot be marked. */
static bool rect_give_up_parity(const struct request *rq, const struct rect *r)
{
    uint64_t sector = stripe_sector(rq->a, &r->st, r->from), sectors = (r->to - r->from) / RL_SECTOR;
    bool whole = true;
    for (unsigned i = 0; i < r->st.nd; i++)
        whole &= r->st.slot_of[i] < 0 || rl_device_for_read(rq->a, (uint32_t)r->st.slot_of[i], sector, sectors) >= 0;
    return whole || rect_disown_parity(rq, r);
}

/* After writes of which some failed: is every data block of the stripe still there, or can it be computed? Bytes [at, end) of the rectangle. */
static bool rect_is_whole(const rl_array *a, const struct rect *r, const struct rl_io *ios, unsigned count, const struct losses *lost,
                          uint64_t at, uint64_t end)
{
    uint64_t sector = stripe_sector(a, &r->st, r->from + at), sectors = (end - at) / RL_SECTOR;
    uint8_t good[RL_VECTOR_MAX] = {0};
    unsigned data = 0, parities = 0;
    for (unsigned j = 0; j < count; j++) {
        bool there = ios[j].result == 0 || !lost->hard[j];
        for (unsigned l = 0; l < lost->count; l++)
            there &= lost->of[l].io != j || lost->of[l].at >= end || lost->of[l].at + lost->of[l].length <= at;
        good[ios[j].tag] |= there;
    }
    for (unsigned i = 0; i < r->st.nd + r->st.np; i++) {
        int slot = r->st.slot_of[i];
        bool there = good[i] || (slot >= 0 && !r->put[i] && rl_device_for_read(a, (uint32_t)slot, sector, sectors) >= 0);
        data += i < r->st.nd && slot >= 0 && !there;
        parities += i >= r->st.nd && there;
    }
    return data <= parities;
}

static bool rect_bears(const rl_array *a, const void *context, const struct rl_io *ios, unsigned count, const struct losses *lost,
                       unsigned which)
{
    return rect_is_whole(a, context, ios, count, lost, lost->of[which].at, lost->of[which].at + lost->of[which].length);
}

/* A write failed in part. Members that the content can do without are simply out, and the others agree (I7). Else the stripe must be made whole: by the old blocks,
 * or by parity anew; where neither succeeds a resync is due, and a fragile stripe is the end of the array's promises. */
static int rect_mend(struct request *rq, struct workspace *w, struct workspace *old, struct rect *r, unsigned count,
                     const struct losses *lost, int rc)
{
    rl_array *a = rq->a;
    bool needed = false, hard = false;
    for (unsigned j = 0; j < rq->failed_count; j++)
        needed |= !rl_enough_without(a, (int32_t)rq->failed[j].device);
    for (unsigned j = 0; j < count; j++)
        hard |= rc == 0 && w->io[j].result && lost->hard[j];
    /* the content as a whole may do without a member that this stripe needs, because others have bad blocks in it */
    bool whole = !hard || rect_is_whole(a, r, w->io, count, lost, 0, r->to - r->from);
    if (rc == 0 && !needed && whole) {
        rl_bad_settle_writes(rq, w->io, count, lost);
        return 0;
    }
    int mended = old ? rect_undo(rq, r, old, w->io, count) : rect_restripe(rq, w, r);
    if (mended) {
        rl_set_resync_back(a, stripe_sector(a, &r->st, r->from), (r->to - r->from) / RL_SECTOR);
        if ((old || !rect_give_up_parity(rq, r)) && !atomic_exchange(&a->broken, true))
            rl_event_post(a, RL_EVENT_FAIL, (int32_t)w->io[0].device, 0,
                          "a degraded stripe could be neither written nor put back: the array has failed");
    }
    if (rc == 0 && !whole)
        rc = rl_fail(EIO, "rl_array_pwrite", -1, stripe_sector(a, &r->st, r->from) * RL_SECTOR,
                     "stripe %llu: a member failed, and bad blocks of others leave nothing to make up for it",
                     (unsigned long long)r->st.number);
    return rc;
}

/* The way that reads less; where blocks cannot be read, and not be computed by it, the other one may do. */
static int rect_compute(struct request *rq, struct workspace *w, struct rect *r)
{
    bool update = rect_updates(rq->a, r), known = stripe_sector(rq->a, &r->st, r->to) <= atomic_load(&rq->a->resync); /* I9 */
    int rc = update ? rect_update(rq, w, r) : rect_recompute(rq, w, r);
    if (rc != -EIO || rq->failed_count || (!update && !known))
        return rc;
    for (unsigned i = r->st.nd; i < r->st.nd + r->st.np; i++)
        r->put[i] = r->open[i];
    return update ? rect_recompute(rq, w, r) : rect_update(rq, w, r);
}

/* More blocks of the stripe are unreadable than its parity makes up for, so no parity can be made to fit. It is given up here (marked as bad before anything is written),
 * and whole blocks that are written are good again. One block high. */
static int rect_without_parity(struct request *rq, struct workspace *w, struct rect *r)
{
    rl_array *a = rq->a;
    uint64_t sector = stripe_sector(a, &r->st, r->from), length = r->to - r->from;
    for (unsigned i = 0; i < r->st.nd; i++) {
        if (r->touched[i] && (!r->open[i] || r->edges))
            return -EIO;
        char *copy = r->touched[i] ? rl_workspace_block(w, &w->block[i]) : NULL;
        if (r->touched[i] && !copy)
            return rl_fail(ENOMEM, "rl_array_pwrite", -1, 0, "no memory");
        r->final[i] = copy ? memcpy(copy, r->source_of[i], length) : NULL;
    }
    if (!rect_disown_parity(rq, r))
        return rl_fail(EIO, "rl_array_pwrite", -1, sector * RL_SECTOR,
                       "other blocks of stripe %llu cannot be read, and its parity, which does not fit any more, cannot be marked as bad",
                       (unsigned long long)r->st.number);
    memset(r->put + r->st.nd, 0, r->st.np * sizeof *r->put);
    return 0;
}

/* 1: a member failed before anything was written (I7): once more, without it. */
static int rect_write(struct request *rq, struct workspace *w, struct rect *r)
{
    rl_array *a = rq->a;
    uint8_t want[RL_VECTOR_MAX] = {0};
    struct workspace *old = NULL;
    bool untouched = false;
    unsigned doubted = atomic_load(&a->doubted);
    int rc = rect_look(a, r);
    if (rc == 0 && rect_fragile(r, &untouched)) {
        old = rl_workspace_second(a);
        for (unsigned i = 0; i < r->st.nd + r->st.np; i++)
            want[i] = r->live[i] && (i >= r->st.nd || r->touched[i]);
        rc = old ? rl_stripe_fetch(rq, &r->st, old, r->from, r->to - r->from, 0, want, 0)
                 : rl_fail(ENOMEM, "rl_array_pwrite", -1, 0, "no memory");
        if (rc && old) {
            rl_workspace_put(a, old);
            old = NULL;
        }
        if (rl_is_unreadable(rq, rc) && !untouched)
            rc = 0; /* all of what is lost is written anew: that an old block cannot be read must not stand in its way */
    }
    if (rc == 0)
        rc = rect_compute(rq, w, r);
    if (r->to - r->from <= a->block_bytes && rl_is_unreadable(rq, rc))
        rc = rect_without_parity(rq, w, r);
    if (rc == 0 && atomic_load(&a->doubted) != doubted) {
        rc = 1;
    } else if (rc == 0) {
        struct losses lost;
        unsigned n = rect_writes(a, w, r);
        rl_io_run(w->io, n);
        rc = rl_judge_writes(rq, w->io, n, rect_bears, r, &lost);
        rc = rect_mend(rq, w, old, r, n, &lost, rc);
    }
    if (old)
        rl_workspace_put(a, old);
    return rc;
}

int64_t rl_stripe_write(struct request *rq, struct workspace *w, const void *buffer, uint64_t length, uint64_t offset, bool stable)
{
    rl_array *a = rq->a;
    uint64_t chunk_bytes = (uint64_t)a->g.chunk_sectors * RL_SECTOR, chunk = offset / chunk_bytes, start = offset % chunk_bytes;
    struct rect r = {.first = (unsigned)(chunk % a->g.data), .columns = 1, .source = buffer, .chunk_bytes = chunk_bytes, .stable = stable};
    uint64_t whole = rl_min(length / chunk_bytes, a->g.data - r.first);
    rl_stripe_look(a, chunk / a->g.data, &r.st);
    r.low = start;
    r.high = rl_min(start + length, chunk_bytes);
    if (start == 0 && whole > 0) {
        r.columns = (unsigned)whole;
        r.high = chunk_bytes;
    }
    int rc = 0;
    uint64_t total = r.columns * (r.high - r.low), end = r.high, careful = 0;
    pthread_mutex_lock(rl_stripe_lock(a, r.st.number));
    /* from top to bottom in slices, where some of it cannot be read in blocks; all of them before the piece counts as done */
    for (r.high = r.low; rc == 0 && r.high < end;) {
        r.source += r.high - r.low;
        r.low = r.high;
        r.from = rl_round_down(r.low, a->block_bytes);
        uint64_t most = r.from < careful ? a->block_bytes : RL_SLICE_BYTES;
        uint64_t sectors = rl_uniform_run(a, stripe_sector(a, &r.st, r.from), most / RL_SECTOR);
        r.high = rl_min(end, r.from + sectors * RL_SECTOR);
        r.to = rl_round_up(r.high, a->block_bytes);
        r.edges = r.from != r.low || r.to != r.high;
        do
            rc = rect_write(rq, w, &r);
        while (rc > 0);
        if (r.to - r.from > a->block_bytes && rl_is_unreadable(rq, rc)) {
            careful = r.to;
            r.high = r.low;
            rc = 0;
        }
    }
    pthread_mutex_unlock(rl_stripe_lock(a, r.st.number));
    return rc ? rc : (int64_t)total;
}

/* Zeros in all data of a stripe make zeros of all its parity: nothing needs to be read or computed, and members that make zeros by themselves are not written to. */
static int rect_zero(struct request *rq, struct workspace *w, struct rect *r, uint32_t flags)
{
    int rc = rect_look(rq->a, r);
    if (rc)
        return rc;
    memset(r->final, 0, sizeof r->final);
    unsigned n = rect_writes(rq->a, w, r);
    rl_zero_run(w->io, n, flags);
    struct losses lost;
    rc = rl_judge_writes(rq, w->io, n, rect_bears, r, &lost);
    return rect_mend(rq, w, NULL, r, n, &lost, rc);
}

int64_t rl_stripe_zero(struct request *rq, struct workspace *w, uint64_t length, uint64_t offset, uint32_t flags)
{
    rl_array *a = rq->a;
    uint64_t chunk_bytes = (uint64_t)a->g.chunk_sectors * RL_SECTOR, stripe_bytes = chunk_bytes * a->g.data;
    struct rect r = {.columns = a->g.data, .chunk_bytes = chunk_bytes};
    if (offset % stripe_bytes || length < stripe_bytes)
        return -EOPNOTSUPP;
    int rc = 0;
    rl_stripe_look(a, offset / stripe_bytes, &r.st);
    pthread_mutex_lock(rl_stripe_lock(a, r.st.number));
    while (rc == 0 && r.to < chunk_bytes) {
        r.from = r.low = r.to;
        r.to = r.high = r.from + rl_uniform_run(a, stripe_sector(a, &r.st, r.from), (chunk_bytes - r.from) / RL_SECTOR) * RL_SECTOR;
        rc = rect_zero(rq, w, &r, flags);
    }
    pthread_mutex_unlock(rl_stripe_lock(a, r.st.number));
    return rc ? rc : (int64_t)stripe_bytes;
}
