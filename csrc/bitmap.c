/* bitmap.c: the write-intent bitmap: which regions may differ between members, on every member, before they do.
 *
 * DEFINITIONS. A region is `region_sectors` of what is kept in sync: of each member (parity levels, raid1), or of the array (raid10). Its bit is set while it may be that not all
 * members hold the same there. After a crash only regions whose bit is set are resynced; a member that was away (rl_array_readd) gets only those. In memory a region has a word:
 *
 *   PENDING   how many writes are between rl_bitmap_begin and rl_bitmap_end
 *   SET       the bit is on every device in use, durably
 *   FRESH     written since the last sweep
 *   NEEDED    a resync has to go over it; SYNCING: one is doing so
 *
 *            begin (bit to the members)        end                    sweep                     sweep, a flush later (lazily to the members)
 *   0 ──────────────────────────► SET, PENDING ───► SET, FRESH ──────────────► SET ──────────────────────────────────────────► 0
 *
 * `image` is the area as it is to be on the members: head, and bits, which are set there at least as long as in the words.
 *
 *   B1  A region's bit is durable on every device that a write may go to before the first byte of it reaches any.
 *   B2  A bit is cleared only while every slot is in sync and nothing failed waits to be recorded, with no write pending, nothing to be resynced there, and after a flush of
 *       every device that began when the last write of the region had ended.
 *   B3  `events_cleared` is the event count as of a moment at which every slot was in sync, and is durable on every device before a bit that was cleared then reaches one. So a member
 *       whose own superblock is not older holds all that is not marked.
 *   B4  The head's event count is never behind the superblocks': a commit writes the heads first. A head whose count is behind says nothing (all bits count as set).
 *   B5  A head with a valid count is written only over bits that are whole: a device that may lack some (one new in its slot, one that differed when the array was opened) gets the bits
 *       first, under the head that it has (for one that is new a count of 0), and nothing is marked or written until all have theirs (bitmap_due). So marks that one device alone has
 *       stay good until another has them.
 *   B6  What the bitmap is (that there is one, where) changes with config held exclusively and no job running.
 *
 * `io` orders all that reaches the members of the bitmap while config is shared; whoever waits for it finds his bits set by whoever had it (one write for many).
 * Lock order: internal.h; io comes after config, before all members' own, and never together with a stripe lock.
 */
#include "bitmap.h"

#define SKIP_STEPS 4096u

static void image_put(struct bitmap *b, uint64_t region, bool set)
{
    uint64_t at = RL_BITMAP_HEAD_BYTES + region / 8;
    uint8_t mask = (uint8_t)(1u << region % 8);
    b->image[at] = (uint8_t)(set ? b->image[at] | mask : b->image[at] & ~mask);
    b->dirty[at / RL_BITMAP_PAGE] = 1;
}

static struct span span_of(const struct bitmap *b, uint64_t sector, uint64_t sectors)
{
    return (struct span){sector / b->region_sectors, (sector + sectors - 1) / b->region_sectors};
}

/* ---- on the members ------------------------------------------------------------------------------------------------ */

uint64_t rl_bitmap_offset(const rl_array *a, const struct rl_superblock *own)
{
    return (own->super_offset + (uint64_t)(int64_t)a->sb.bitmap_offset) * RL_SECTOR;
}

bool rl_bitmap_is_on(const struct device *d)
{
    return d->state == RL_DEVICE_IN_SYNC || d->state == RL_DEVICE_REBUILDING || d->state == RL_DEVICE_REPLACEMENT;
}

static unsigned list_devices(const rl_array *a, struct rl_io *ios)
{
    unsigned count = 0;
    for (uint32_t i = 0; i < a->device_count; i++) {
        if (rl_bitmap_is_on(a->devices[i]) && !atomic_load(&a->devices[i]->doubted))
            ios[count++] = (struct rl_io){.member = a->devices[i]->member, .device = i, .op = RL_OP_FLUSH};
    }
    return count;
}

/* Pages [page, end) of the image onto the devices of `ios`, where the first failure of each is kept. */
static void write_run(const rl_array *a, const struct bitmap *b, struct rl_io *ios, unsigned count, uint64_t page, uint64_t end)
{
    struct rl_io run[RL_DEVICES_MAX];
    for (unsigned i = 0; i < count; i++)
        run[i] = (struct rl_io){.member = ios[i].member,
                                .buffer = b->image + page * RL_BITMAP_PAGE,
                                .offset = rl_bitmap_offset(a, &a->devices[ios[i].device]->sb) + page * RL_BITMAP_PAGE,
                                .length = (end - page) * RL_BITMAP_PAGE,
                                .op = RL_OP_WRITE};
    rl_io_run(run, count);
    for (unsigned i = 0; i < count; i++)
        ios[i].result = ios[i].result ? ios[i].result : run[i].result;
}

static void flush_written(struct rl_io *ios, unsigned count)
{
    struct rl_io run[RL_DEVICES_MAX];
    unsigned n = 0;
    for (unsigned i = 0; i < count; i++) {
        if (ios[i].result == 0) {
            run[n] = ios[i];
            run[n++].tag = (uint16_t)i;
        }
    }
    rl_io_run(run, n);
    for (unsigned i = 0; i < n; i++)
        ios[run[i].tag].result = run[i].result;
}

/* The dirty pages onto all devices in use; io held, config shared. What failed is noted in rq, and doubted if the content can do without it; 0: all others have them. */
static int write_dirty(struct request *rq, struct bitmap *b, bool flush)
{
    rl_array *a = rq->a;
    struct rl_io ios[RL_DEVICES_MAX];
    unsigned count = list_devices(a, ios);
    uint64_t pages = b->bytes / RL_BITMAP_PAGE;
    int rc = 0;
    for (uint64_t page = 0, end = 0; page < pages; page = end + 1) {
        for (end = page; end < pages && b->dirty[end];)
            end++;
        if (end > page)
            write_run(a, b, ios, count, page, end);
    }
    if (flush)
        flush_written(ios, count);
    for (unsigned i = 0; i < count; i++) {
        if (rl_is_space_error(ios[i].result)) {
            rl_note_full(a, (int32_t)ios[i].device);
            rc = rl_fail(ENOSPC, "rl_array_pwrite", -1, 0, "no space for the write-intent bitmap of %s", ios[i].member->name);
        } else if (ios[i].result) {
            rl_request_failed(rq, ios[i].device, ios[i].result);
            if (!atomic_load(&a->devices[ios[i].device]->doubted))
                rc = rl_fail(EIO, "rl_array_pwrite", -1, 0, "the write-intent bitmap of %s, which the content needs, cannot be written",
                             ios[i].member->name);
        }
    }
    if (rc == 0)
        memset(b->dirty, 0, pages);
    return rc;
}

void rl_bitmap_put_head(struct bitmap *b, uint64_t events)
{
    struct rl_bitmap_superblock sb = b->sb;
    sb.events = events;
    sb.events_cleared = atomic_load(&b->events_cleared);
    rl_bitmap_encode(&sb, b->image);
    b->dirty[0] = 1;
}

/* B4, B5. Config exclusive: nobody else has the image. */
int rl_bitmap_write_to(rl_array *a, uint32_t device)
{
    struct device *d = a->devices[device];
    struct bitmap *b = a->bitmap;
    struct rl_io io = {.member = d->member, .device = device, .op = RL_OP_FLUSH};
    if (!b || !rl_bitmap_is_on(d) || (d->bitmap_whole && d->bitmap_events == a->sb.events))
        return 0;
    if (!d->bitmap_whole) {
        rl_bitmap_put_head(b, d->bitmap_events);
        write_run(a, b, &io, 1, 0, b->bytes / RL_BITMAP_PAGE);
        flush_written(&io, 1);
    }
    b->sb.events = a->sb.events;
    rl_bitmap_put_head(b, b->sb.events);
    if (io.result == 0)
        write_run(a, b, &io, 1, 0, 1);
    flush_written(&io, 1);
    if (io.result == 0) {
        d->bitmap_whole = true;
        d->bitmap_events = a->sb.events;
    }
    return io.result;
}

/* ---- writes --------------------------------------------------------------------------------------------------------- */

static bool all_set(struct bitmap *b, struct span span)
{
    for (uint64_t i = span.first; i <= span.last; i++) {
        if (!(atomic_load(&b->words[i]) & RL_REGION_SET))
            return false;
    }
    return true;
}

/* Sets the bits of the spans on all devices. io held. */
static int set_bits(struct request *rq, struct bitmap *b, const struct span *spans, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        for (uint64_t region = spans[i].first; region <= spans[i].last; region++)
            image_put(b, region, true);
    }
    int rc = write_dirty(rq, b, true);
    for (unsigned i = 0; i < count; i++) {
        for (uint64_t region = spans[i].first; region <= spans[i].last; region++) {
            if (rc == 0)
                atomic_fetch_or(&b->words[region], RL_REGION_SET);
            else if (!(atomic_load(&b->words[region]) & RL_REGION_SET))
                image_put(b, region, false); /* on some devices it may be set: that is the safe side */
        }
    }
    return rc;
}

static int set_slowly(struct request *rq, struct bitmap *b, struct span span)
{
    struct span wanted[RL_BITMAP_QUEUE_MAX + 1];
    unsigned count = 0;
    pthread_mutex_lock(&b->queue_lock);
    if (b->queued < RL_BITMAP_QUEUE_MAX)
        b->queue[b->queued++] = span;
    pthread_mutex_unlock(&b->queue_lock);
    pthread_mutex_lock(&b->io);
    pthread_mutex_lock(&b->queue_lock);
    memcpy(wanted, b->queue, b->queued * sizeof *wanted);
    count = b->queued;
    b->queued = 0;
    pthread_mutex_unlock(&b->queue_lock);
    int rc = 0;
    if (!all_set(b, span))
        wanted[count++] = span; /* the queue was full, or whoever had it has failed */
    if (count)
        rc = set_bits(rq, b, wanted, count);
    if (rc && all_set(b, span))
        rc = 0; /* somebody else's trouble */
    pthread_mutex_unlock(&b->io);
    return rc;
}

/* In the unit of the bitmap, what the next piece of a change may touch (rl_stripe_write, rl_mirror_write): at most one stripe, or one region of a mirror. */
static void reach(const rl_array *a, uint64_t length, uint64_t offset, uint64_t *sector, uint64_t *sectors)
{
    uint64_t low = offset, high = 0, end = 0, base = 0, chunk_bytes = (uint64_t)a->g.chunk_sectors * RL_SECTOR;
    if (a->g.parity) {
        uint64_t chunk = offset / chunk_bytes;
        base = chunk / a->g.data * chunk_bytes;
        low = offset % chunk_bytes;
        high = rl_min(low + length, chunk_bytes);
    } else {
        (void)rl_mirror_region(a, offset / RL_SECTOR, &end);
        high = rl_min(offset + length, end * RL_SECTOR);
    }
    low = rl_round_down(low, a->block_bytes);
    high = rl_round_up(high, a->block_bytes);
    *sector = (base + low) / RL_SECTOR;
    *sectors = (high - low) / RL_SECTOR;
}

int rl_bitmap_begin_sectors(struct request *rq, uint64_t sector, uint64_t sectors, struct bitmap_hold *hold)
{
    struct bitmap *b = rq->a->bitmap;
    bool set = true;
    *hold = (struct bitmap_hold){0};
    if (!b)
        return 0;
    struct span span = span_of(b, sector, sectors);
    for (uint64_t i = span.first; i <= span.last; i++) {
        uint16_t before = atomic_fetch_add(&b->words[i], 1);
        RL_ASSERT((before & RL_REGION_PENDING) < RL_REGION_PENDING);
        set &= (before & RL_REGION_SET) != 0;
    }
    *hold = (struct bitmap_hold){.b = b, .first = span.first, .last = span.last};
    int rc = set ? 0 : set_slowly(rq, b, span);
    if (rc)
        rl_bitmap_end(hold);
    return rc;
}

int rl_bitmap_begin(struct request *rq, uint64_t length, uint64_t offset, struct bitmap_hold *hold)
{
    uint64_t sector = 0, sectors = 0;
    reach(rq->a, length, offset, &sector, &sectors);
    return rl_bitmap_begin_sectors(rq, sector, sectors, hold);
}

void rl_bitmap_end(struct bitmap_hold *hold)
{
    for (uint64_t i = hold->first; hold->b && i <= hold->last; i++) {
        _Atomic uint16_t *word = &hold->b->words[i];
        if (!(atomic_load(word) & RL_REGION_FRESH))
            atomic_fetch_or(word, RL_REGION_FRESH);
        atomic_fetch_sub(word, 1);
    }
    hold->b = NULL;
}

/* ---- clearing ------------------------------------------------------------------------------------------------------- */

/* B2: config held, either way. */
static bool may_clear(const rl_array *a)
{
    uint8_t present[RL_SLOTS_MAX];
    bool all = !atomic_load(&a->doubted) && !atomic_load(&a->commit_due) && !atomic_load(&a->bitmap_due) && !atomic_load(&a->broken) &&
               !atomic_load(&a->full);
    rl_present_slots(a, -1, present);
    for (uint32_t slot = 0; slot < a->g.slots; slot++)
        all &= present[slot];
    return all;
}

/* B3. */
static int advance_cleared(struct request *rq, struct bitmap *b)
{
    if (atomic_load(&b->events_cleared) == rq->a->sb.events)
        return 0;
    atomic_store(&b->events_cleared, rq->a->sb.events);
    rl_bitmap_put_head(b, b->sb.events);
    return write_dirty(rq, b, true);
}

static bool any_word(struct bitmap *b, uint16_t mask, uint16_t value)
{
    for (uint64_t i = 0; i < b->regions; i++) {
        if ((atomic_load_explicit(&b->words[i], memory_order_relaxed) & mask) == value)
            return true;
    }
    return false;
}

/* Clears the bits of the regions whose words are RL_REGION_SET and, but for `besides`, nothing else. io held. */
static void clear_words(struct request *rq, struct bitmap *b, uint16_t besides)
{
    if (!any_word(b, (uint16_t)~besides, RL_REGION_SET) || advance_cleared(rq, b))
        return; /* what failed is noted; the bits stay */
    for (uint64_t i = 0; i < b->regions; i++) {
        uint16_t word = atomic_load(&b->words[i]);
        if ((word & (uint16_t)~besides) == RL_REGION_SET && atomic_compare_exchange_strong(&b->words[i], &word, 0))
            image_put(b, i, false);
    }
    (void)write_dirty(rq, b, false); /* a bit that stays on a member is the safe side, and a failure is noted */
}

static bool age_words(struct bitmap *b, bool back)
{
    bool any = false;
    for (uint64_t i = 0; i < b->regions; i++) {
        uint16_t word = atomic_load(&b->words[i]);
        if (back && word == RL_REGION_SET)
            atomic_fetch_or(&b->words[i], RL_REGION_FRESH);
        else if (!back && (word & (RL_REGION_FRESH | RL_REGION_PENDING)) == RL_REGION_FRESH && word & RL_REGION_SET)
            any |= atomic_compare_exchange_strong(&b->words[i], &word, word & (uint16_t)~RL_REGION_FRESH);
    }
    return any;
}

static void sweep(struct request *rq, struct bitmap *b)
{
    pthread_mutex_lock(&b->io);
    clear_words(rq, b, 0);
    pthread_mutex_unlock(&b->io);
    if (rq->failed_count == 0 && age_words(b, false) && rl_flush_devices(rq->a, rq))
        (void)age_words(b, true);
}

int rl_bitmap_service(rl_array *a)
{
    struct request rq = {.a = a};
    uint64_t now = a->clock_ns(a->clock_context), next = now + 1000000000u;
    pthread_rwlock_rdlock(&a->config);
    struct bitmap *b = a->bitmap;
    if (b) {
        uint64_t period = b->sb.daemon_sleep_s * 1000000000ull;
        if (b->next_sweep_ns == 0 || b->next_sweep_ns > now + period)
            b->next_sweep_ns = now + period;
        if (now >= b->next_sweep_ns) {
            b->next_sweep_ns = now + period;
            if (may_clear(a))
                sweep(&rq, b);
        }
        next = b->next_sweep_ns;
    }
    pthread_rwlock_unlock(&a->config);
    if (rq.failed_count)
        (void)rl_request_settle(&rq); /* recorded, or its writers will be told */
    return (int)((next - now) / 1000000u + 1);
}

/* Config exclusive, all devices flushed, marked clean. A device that fails here keeps bits that are set, and its head. */
void rl_bitmap_close(rl_array *a)
{
    struct request rq = {.a = a};
    if (a->bitmap && may_clear(a))
        clear_words(&rq, a->bitmap, RL_REGION_FRESH);
}

/* ---- resync, recovery ------------------------------------------------------------------------------------------------ */

void rl_set_resync_back(rl_array *a, uint64_t sector, uint64_t sectors)
{
    bool redundant = a->g.parity || a->g.copies > 1;
    struct bitmap *b = a->bitmap;
    if (b && redundant) { /* first: whoever finds `resync` set back finds it needed */
        struct span span = span_of(b, sector, sectors);
        for (uint64_t i = span.first; i <= span.last; i++)
            atomic_fetch_or(&b->words[i], RL_REGION_NEEDED);
    }
    uint64_t resync = atomic_load(&a->resync);
    while (redundant && resync > sector && !atomic_compare_exchange_weak(&a->resync, &resync, sector))
        ;
}

uint64_t rl_bitmap_resync_next(rl_array *a, uint64_t sector, uint64_t total, uint64_t *end)
{
    struct bitmap *b = a->bitmap;
    *end = total;
    if (!b || sector >= total)
        return sector;
    for (uint64_t i = sector / b->region_sectors; i < b->regions && i * b->region_sectors < total; i++) {
        uint16_t word = atomic_load(&b->words[i]);
        while (word & RL_REGION_NEEDED &&
               !atomic_compare_exchange_weak(&b->words[i], &word, (word & (uint16_t)~RL_REGION_NEEDED) | RL_REGION_SYNCING))
            ;
        if (!(word & (RL_REGION_NEEDED | RL_REGION_SYNCING)))
            continue;
        *end = rl_min((i + 1) * b->region_sectors, total);
        return rl_max(sector, i * b->region_sectors);
    }
    return total;
}

void rl_bitmap_resync_passed(rl_array *a, uint64_t sector)
{
    struct bitmap *b = a->bitmap;
    if (!b)
        return;
    atomic_fetch_or(&b->words[sector / b->region_sectors], RL_REGION_FRESH); /* what was mended has yet to be flushed */
    atomic_fetch_and(&b->words[sector / b->region_sectors], (uint16_t)~RL_REGION_SYNCING);
}

/* How much from there on, at most so much, is marked, or (as *marked says) is not. Where config is held exclusively nobody is about to mark it. */
uint64_t rl_bitmap_run(const rl_array *a, uint32_t slot, uint64_t sector, uint64_t sectors, bool *marked)
{
    struct bitmap *b = a->bitmap;
    uint64_t done = 0;
    for (unsigned steps = 0; done < sectors && steps < SKIP_STEPS; steps++) {
        uint64_t from = sector + done, run = sectors - done;
        bool hole = a->g.level == 10 && rl_geometry_inverse(&a->g, slot, sector + done, &from, &run); /* nothing is kept in that chunk */
        bool set = !hole && atomic_load(&b->words[from / b->region_sectors]) & RL_REGION_SET;
        run =
            hole ? a->g.chunk_sectors - from % a->g.chunk_sectors : rl_min(run, (from / b->region_sectors + 1) * b->region_sectors - from);
        if (done && set != *marked)
            break;
        *marked = set;
        done = rl_min(sectors, done + run);
    }
    return done;
}

void rl_array_bitmap(rl_array *a, struct rl_bitmap_status *out)
{
    memset(out, 0, sizeof *out);
    if (rl_enter(a, "rl_array_bitmap"))
        return;
    pthread_rwlock_rdlock(&a->config);
    struct bitmap *b = a->bitmap;
    if (b) /* without io, which is held as long as a member takes to write */
        *out = (struct rl_bitmap_status){.chunk_bytes = b->sb.chunk_bytes,
                                         .daemon_sleep_s = b->sb.daemon_sleep_s,
                                         .bits = b->regions,
                                         .events_cleared = atomic_load(&b->events_cleared)};
    for (uint64_t i = 0; b && i < b->regions; i++) {
        uint16_t word = atomic_load_explicit(&b->words[i], memory_order_relaxed);
        out->set += (word & RL_REGION_SET) != 0;
        out->needed += (word & (RL_REGION_NEEDED | RL_REGION_SYNCING)) != 0;
    }
    pthread_rwlock_unlock(&a->config);
}
