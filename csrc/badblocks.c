/* badblocks.c: blocks of a device that must not be read: nobody knew their content when the device was rebuilt, or a write to them failed.
 *
 * DEFINITIONS. `bad` are the ranges that hold now, `logged` those that the log on the device names, or will after the next commit; both count sectors from the device's
 * beginning. A block of the array is bad on a device if any sector of it is. Writes go to bad blocks as to others.
 *
 *   rl_bad_mark   ──► bad, logged: due ──► rl_metadata_commit (log, flush, superblock, flush)
 *   rl_bad_clear  ──► out of bad (it was written whole) ──► rl_bad_note_durable: out of logged ──► rl_metadata_commit
 *
 *   I12 No write is acknowledged while a mark is due: not yet in the log of its device (rl_request_settle). In a commit a device's log comes before its superblock, so
 *       that no recovery_offset passes a block that is not in the log.
 *   I13 A range leaves a log only after what was written there is flushed and while no mark is due on any device: what is computed from a block that is called good must
 *       not rest on one that should be called bad.
 */
#include "internal.h"

#define UNIT_SHIFT_MAX 16u

/* ---- ranges: sorted, disjoint, not adjacent ----------------------------------------------------------------------- */

static uint64_t end_of(const struct ranges *r, uint32_t i)
{
    return r->pairs[2 * i] + r->pairs[2 * i + 1];
}

/* The first range that ends behind `sector`. */
static uint32_t find(const struct ranges *r, uint64_t sector)
{
    uint32_t low = 0, high = r->count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (end_of(r, middle) > sector)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static bool overlaps(const struct ranges *r, uint64_t first, uint64_t end)
{
    uint32_t i = find(r, first);
    return i < r->count && r->pairs[2 * i] < end;
}

static bool covers(const struct ranges *r, uint64_t first, uint64_t end)
{
    uint32_t i = find(r, first);
    return i < r->count && r->pairs[2 * i] <= first && end_of(r, i) >= end;
}

static bool reserve(struct ranges *r, uint32_t count)
{
    if (count <= r->room)
        return true;
    uint32_t room = 2 * count + 16;
    uint64_t *more = realloc(r->pairs, room * 2 * sizeof *more);
    if (!more)
        return false;
    r->pairs = more;
    r->room = room;
    return true;
}

/* The ranges i..j-1 become the `count` (0, 1 or 2) that are given. */
static void splice(struct ranges *r, uint32_t i, uint32_t j, const uint64_t *pairs, uint32_t count)
{
    memmove(r->pairs + 2 * (i + count), r->pairs + 2 * j, (r->count - j) * 2 * sizeof *pairs);
    memcpy(r->pairs + 2 * i, pairs, count * 2 * sizeof *pairs);
    r->count = r->count + count - (j - i);
}

static bool add(struct ranges *r, uint64_t first, uint64_t end)
{
    if (!reserve(r, r->count + 1))
        return false;
    uint32_t i = find(r, first ? first - 1 : 0), j = i; /* an adjacent one too */
    for (; j < r->count && r->pairs[2 * j] <= end; j++) {
        first = rl_min(first, r->pairs[2 * j]);
        end = rl_max(end, end_of(r, j));
    }
    splice(r, i, j, (uint64_t[]){first, end - first}, 1);
    return true;
}

static bool take_away(struct ranges *r, uint64_t first, uint64_t end)
{
    uint32_t i = find(r, first), j = i, count = 0;
    uint64_t left[4];
    if (!reserve(r, r->count + 1))
        return false;
    for (; j < r->count && r->pairs[2 * j] < end; j++) {
        if (r->pairs[2 * j] < first) {
            left[2 * count] = r->pairs[2 * j];
            left[2 * count++ + 1] = first - r->pairs[2 * j];
        }
        if (end_of(r, j) > end) {
            left[2 * count] = end;
            left[2 * count++ + 1] = end_of(r, j) - end;
        }
    }
    splice(r, i, j, left, count);
    return true;
}

static bool copy(struct ranges *to, const struct ranges *from)
{
    if (!reserve(to, from->count))
        return false;
    if (from->count)
        memcpy(to->pairs, from->pairs, from->count * 2 * sizeof *to->pairs);
    to->count = from->count;
    return true;
}

/* A leaf; readers have the array as const. */
static pthread_rwlock_t *lock_of(const rl_array *a)
{
    return (pthread_rwlock_t *)(uintptr_t)&a->bad_lock;
}

/* ---- a device's lists --------------------------------------------------------------------------------------------- */

/* Whether the log that the superblock names may be written: it touches nothing else. */
bool rl_bad_log_usable(const rl_array *a, const struct device *d)
{
    const struct rl_superblock *sb = &d->sb;
    uint64_t sectors = rl_member_size(d->member) / RL_SECTOR, block = rl_max(1, rl_member_block_bytes(d->member) / RL_SECTOR);
    uint64_t data_end = sb->data_offset + rl_max(sb->data_size, a->g.used_sectors), length = sb->bblog_sectors;
    bool redundant = a->g.parity || a->g.copies > 1;
    if (!redundant || sb->version == 90 || sb->bblog_offset == 0 || length == 0 || length * RL_SECTOR > RL_BADBLOCKS_BYTES ||
        sb->bblog_shift > UNIT_SHIFT_MAX || (sb->bblog_offset < 0 && (uint64_t)-(int64_t)sb->bblog_offset > sb->super_offset))
        return false;
    uint64_t at = sb->super_offset + (uint64_t)(int64_t)sb->bblog_offset, super_end = sb->super_offset + RL_SB_BYTES / RL_SECTOR;
    return at % block == 0 && length % block == 0 && at <= sectors && length <= sectors - at &&
           (at + length <= sb->super_offset || at >= super_end) && (at + length <= sb->data_offset || at >= data_end);
}

static int entries(const struct device *d, const struct ranges *r)
{
    return rl_badblocks_encode(r->pairs, r->count, d->sb.bblog_shift, NULL, 0);
}

static bool fits(const struct device *d, const struct ranges *r)
{
    int count = entries(d, r);
    return count >= 0 && (unsigned)count <= d->sb.bblog_sectors * RL_SECTOR / 8;
}

static void set_count(rl_array *a, struct device *d)
{
    if (atomic_exchange(&d->bad_count, d->bad.count) == 0 && d->bad.count)
        atomic_fetch_add(&a->uneven, 1); /* exact again at the next rl_count_uneven; until then it only has to be more than 0 */
}

bool rl_bad_take(rl_array *a, struct device *d, const uint64_t *pairs, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (!add(&d->bad, pairs[2 * i], pairs[2 * i] + pairs[2 * i + 1]))
            return false;
    }
    set_count(a, d);
    return copy(&d->logged, &d->bad);
}

void rl_bad_free(struct device *d)
{
    free(d->bad.pairs);
    free(d->logged.pairs);
}

bool rl_bad_has(const rl_array *a, const struct device *d, uint64_t sector, uint64_t sectors)
{
    if (atomic_load(&d->bad_count) == 0)
        return false;
    uint64_t block = a->block_bytes / RL_SECTOR, end = rl_round_up(sector + sectors, block);
    pthread_rwlock_rdlock(lock_of(a));
    bool found = overlaps(&d->bad, d->sb.data_offset + rl_round_down(sector, block), d->sb.data_offset + end);
    pthread_rwlock_unlock(lock_of(a));
    return found;
}

/* How many of `sectors` from `sector` on, are alike in being bad or not. */
uint64_t rl_bad_run(const rl_array *a, const struct device *d, uint64_t sector, uint64_t sectors)
{
    uint64_t block = a->block_bytes / RL_SECTOR, low = rl_round_down(sector, block), data = d->sb.data_offset;
    if (atomic_load(&d->bad_count) == 0)
        return sectors;
    pthread_rwlock_rdlock(lock_of(a));
    uint32_t i = find(&d->bad, data + low);
    if (i < d->bad.count && d->bad.pairs[2 * i] < data + low + block) /* this block is bad: up to the last of its range */
        sectors = rl_min(sectors, rl_round_up(end_of(&d->bad, i) - data, block) - sector);
    else if (i < d->bad.count)
        sectors = rl_min(sectors, rl_round_down(d->bad.pairs[2 * i] - data, block) - sector);
    pthread_rwlock_unlock(lock_of(a));
    return sectors;
}

bool rl_bad_mark(rl_array *a, uint32_t device, uint64_t sector, uint64_t sectors)
{
    struct device *d = a->devices[device];
    uint64_t unit = 1ull << d->sb.bblog_shift, first = rl_round_down(d->sb.data_offset + sector, unit);
    uint64_t end = rl_round_up(d->sb.data_offset + sector + sectors, unit);
    struct ranges trial = {0};
    if (!d->log_usable || a->flags & RL_ARRAY_READ_ONLY)
        return false;
    pthread_rwlock_wrlock(lock_of(a));
    bool known = covers(&d->logged, first, end);
    bool done = (known || (copy(&trial, &d->logged) && add(&trial, first, end) && fits(d, &trial))) && add(&d->bad, first, end);
    if (done && !known) {
        struct ranges before = d->logged;
        d->logged = trial;
        trial = before;
        d->log_stale = true;
    }
    if (done && d->log_stale)
        atomic_store(&a->commit_due, true);
    set_count(a, d);
    pthread_rwlock_unlock(lock_of(a));
    free(trial.pairs);
    return done;
}

void rl_bad_clear(rl_array *a, uint32_t device, uint64_t sector, uint64_t sectors)
{
    struct device *d = a->devices[device];
    uint64_t unit = 1ull << d->sb.bblog_shift, first = rl_round_up(d->sb.data_offset + sector, unit);
    uint64_t end = rl_round_down(d->sb.data_offset + sector + sectors, unit);
    if (atomic_load(&d->bad_count) == 0 || first >= end)
        return;
    pthread_rwlock_wrlock(lock_of(a));
    (void)take_away(&d->bad, first, end); /* without memory it stays bad, which is the safe side */
    set_count(a, d);
    pthread_rwlock_unlock(lock_of(a));
}

/* I13. Config exclusive, all devices flushed. */
void rl_bad_note_durable(rl_array *a)
{
    for (uint32_t i = 0; !atomic_load(&a->commit_due) && i < a->device_count; i++) {
        struct device *d = a->devices[i];
        bool same = d->bad.count == d->logged.count &&
                    (d->bad.count == 0 || memcmp(d->bad.pairs, d->logged.pairs, d->bad.count * 2 * sizeof *d->bad.pairs) == 0);
        /* one that is split up so much that it does not fit stays as it is, and names more than it has to */
        if (!same && d->log_usable && fits(d, &d->bad) && copy(&d->logged, &d->bad))
            d->log_stale = true;
    }
}

/* Whether a commit would change a log. Config exclusive. */
bool rl_bad_stale(const rl_array *a)
{
    bool stale = false;
    for (uint32_t i = 0; i < a->device_count; i++)
        stale |= a->devices[i]->log_stale && a->devices[i]->state != RL_DEVICE_FAULTY && a->devices[i]->state != RL_DEVICE_REMOVED;
    return stale;
}

bool rl_bad_logged(const rl_array *a, const struct device *d)
{
    pthread_rwlock_rdlock(lock_of(a));
    bool any = d->logged.count > 0;
    pthread_rwlock_unlock(lock_of(a));
    return any;
}

/* Writes the log where it has changed, and flushes it. Config exclusive. */
int rl_bad_write_log(struct device *d)
{
    _Alignas(RL_BUFFER_ALIGN) uint8_t log[RL_BADBLOCKS_BYTES];
    if (!d->log_stale)
        return 0;
    uint64_t length = d->sb.bblog_sectors * (uint64_t)RL_SECTOR;
    int count = rl_badblocks_encode(d->logged.pairs, d->logged.count, d->sb.bblog_shift, log, length);
    RL_ASSERT(count >= 0); /* rl_bad_mark and rl_bad_note_durable have seen to it */
    struct rl_io io[2] = {{.member = d->member,
                           .buffer = log,
                           .offset = (d->sb.super_offset + (uint64_t)(int64_t)d->sb.bblog_offset) * RL_SECTOR,
                           .length = length,
                           .op = RL_OP_WRITE},
                          {.member = d->member, .op = RL_OP_FLUSH}};
    for (unsigned i = 0; i < 2; i++) {
        rl_io_run(&io[i], 1);
        if (io[i].result)
            return io[i].result;
    }
    d->log_stale = false;
    return 0;
}

/* ---- writes that fail --------------------------------------------------------------------------------------------- */

/* What says that a place is bad, and not the whole member, or our request. */
bool rl_is_medium_error(int error)
{
    return error == -EIO || error == -ENODATA || error == -EILSEQ || error == -EREMOTEIO;
}

bool rl_is_unreadable(const struct request *rq, int rc)
{
    return rc == -EIO && rq->failed_count == 0 && !atomic_load(&rq->a->doubted) && !atomic_load(&rq->a->broken);
}

bool rl_bad_tolerable(rl_array *a, uint32_t device, uint64_t sector, uint64_t sectors)
{
    struct device *d = a->devices[device];
    uint64_t errors = rl_bad_has(a, d, sector, sectors) ? atomic_load(&d->write_errors) : atomic_fetch_add(&d->write_errors, 1) + 1;
    return d->log_usable && d->state == RL_DEVICE_IN_SYNC && (errors <= RL_WRITE_ERRORS_MAX || !rl_enough_without(a, (int32_t)device));
}

/* Does a write once more, block by block, and notes in `lost` what fails again. false: the member is to be failed for it. */
bool rl_bad_narrow(struct request *rq, const struct rl_io *ios, unsigned index, struct losses *lost)
{
    const struct rl_io *io = &ios[index];
    uint64_t step = rl_max(rq->a->block_bytes, RL_BUFFER_ALIGN);
    uint64_t start = io->offset / RL_SECTOR - rq->a->devices[io->device]->sb.data_offset;
    if (!rl_is_medium_error(io->result) || !rq->a->devices[io->device]->log_usable)
        return false;
    for (uint64_t at = 0; at < io->length; at += step) {
        struct rl_io part = *io;
        part.buffer = io->buffer ? (char *)io->buffer + at : NULL;
        part.offset += at;
        part.length = rl_min(step, io->length - at);
        if (part.op == RL_OP_ZERO)
            rl_zero_run(&part, 1, part.flags);
        else
            rl_io_run(&part, 1);
        if (part.result == 0)
            continue;
        if (!rl_is_medium_error(part.result) || !rl_bad_tolerable(rq->a, io->device, start + at / RL_SECTOR, part.length / RL_SECTOR) ||
            lost->count == RL_WRITE_ERRORS_MAX)
            return false;
        lost->of[lost->count].io = index;
        lost->of[lost->count].at = at;
        lost->of[lost->count++].length = part.length;
    }
    return true;
}

/* The writes of a piece are good but for what is lost: that is marked, and what was bad and is written now is good again. The stripe lock is held. */
void rl_bad_settle_writes(struct request *rq, const struct rl_io *ios, unsigned count, const struct losses *lost)
{
    rl_array *a = rq->a;
    if (lost->count == 0 && !atomic_load(&a->uneven))
        return;
    for (unsigned i = 0; i < count; i++) {
        const struct rl_io *io = &ios[i];
        uint64_t start = io->offset / RL_SECTOR - a->devices[io->device]->sb.data_offset, good = 0;
        if (io->result && lost->hard[i])
            continue;
        for (unsigned l = 0; l < lost->count; l++) {
            if (lost->of[l].io != i)
                continue;
            uint64_t at = lost->of[l].at, length = lost->of[l].length;
            rl_bad_clear(a, io->device, start + good / RL_SECTOR, (at - good) / RL_SECTOR);
            good = at + length;
            if (rl_bad_mark(a, io->device, start + at / RL_SECTOR, length / RL_SECTOR))
                rl_event_post(a, RL_EVENT_BAD_BLOCK, (int32_t)io->device, start * RL_SECTOR + at,
                              "a block that cannot be written is marked as bad");
            else
                rl_request_failed(rq, io->device, -EIO); /* its log is full */
        }
        rl_bad_clear(a, io->device, start + good / RL_SECTOR, (io->length - good) / RL_SECTOR);
    }
}
