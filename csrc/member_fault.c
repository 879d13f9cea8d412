/* member_fault.c: a member over any other one that does to its requests what a plan says, and tells a recorder what reaches the other.
 *
 * DEFINITIONS. A rule is reached by a request of its kind in its range, and hit when it does something to it. Its n-th decision is a function of the seed, the rule's
 * number and n alone: other rules and other members change nothing about it. Delays and hangs add up; of the other faults, the first that applies is the request's fate.
 *
 * F1  The recorder has what reached the inner member, no more and no less: with a fate of lost, torn, short or misdirected that is not what was asked for.
 * F2  No lock is held while a request waits or is with the inner member.
 */
#include "internal.h"

#include <time.h>

struct rule {
    struct rl_fault_rule is;
    uint8_t *written; /* with until_written, a bit for each sector of the range: it was written since */
    bool active;
    bool gone; /* RL_FAULT_GONE has struck */
    uint64_t reached, hit;
};

struct fault_member {
    rl_member base;
    rl_member *inner;
    rl_recorder *recorder; /* or NULL */
    uint32_t number;       /* in the recorder */
    uint64_t seed;
    pthread_mutex_t lock;  /* a leaf; of all below */
    pthread_cond_t wake;   /* a release, the close */
    struct rule *rules;
    unsigned rule_count;
    uint64_t releases;     /* so far: what hangs waits for the next */
    bool closing;
};

/* What becomes of one request. */
struct fate {
    uint32_t kind; /* RL_FAULT_*, 0: as without a plan */
    int rule;
    struct rl_fault_rule is;
    uint64_t dice;
    uint64_t delay_ms;
    bool hangs;
};

/* ---- the plan ----------------------------------------------------------------------------------------------------- */

/* splitmix64: a good 64-bit number for each state. */
static uint64_t mix(uint64_t state)
{
    state += 0x9e3779b97f4a7c15u;
    state = (state ^ state >> 30) * 0xbf58476d1ce4e5b9u;
    state = (state ^ state >> 27) * 0x94d049bb133111ebu;
    return state ^ state >> 31;
}

static uint64_t dice_of(const struct fault_member *m, unsigned rule, uint64_t turn)
{
    return mix(mix(mix(m->seed) ^ rule) ^ turn);
}

/* Is the sector in the rule's range, and, where that counts, not written since? */
static bool has_sector(const struct rule *r, uint64_t sector)
{
    uint64_t at = sector - r->is.first_sector; /* modulo 2^64: what is below is beyond the end */
    return r->is.sectors == 0 || (at < r->is.sectors && !(r->written && r->written[at / 8] >> at % 8 & 1));
}

static bool meets(const struct rule *r, uint32_t op, uint64_t length, uint64_t offset)
{
    bool placed = op == RL_FAULT_ON_READ || op == RL_FAULT_ON_WRITE;
    if (!(r->is.ops & op))
        return false;
    if (!placed || r->is.sectors == 0)
        return true;
    uint64_t first = rl_max(offset / RL_SECTOR, r->is.first_sector);
    uint64_t end = rl_min((offset + length + RL_SECTOR - 1) / RL_SECTOR, r->is.first_sector + r->is.sectors);
    while (r->written && first < end && !has_sector(r, first))
        first++;
    return length && first < end;
}

/* Asks one rule about one request, lock held. */
static void ask(struct fault_member *m, unsigned number, uint32_t op, uint64_t length, uint64_t offset, struct fate *fate)
{
    struct rule *r = &m->rules[number];
    bool adds_up = r->is.kind == RL_FAULT_DELAY || r->is.kind == RL_FAULT_HANG;
    if (!r->active || (!r->gone && !meets(r, op, length, offset)))
        return;
    uint64_t turn = r->reached++, dice = dice_of(m, number, turn);
    bool due = turn >= r->is.after && (r->is.times == 0 || r->hit < r->is.times);
    bool spared = (double)(dice >> 11) * 0x1p-53 >= r->is.probability;
    if (!r->gone && (!due || spared || (!adds_up && fate->kind)))
        return;
    r->hit++;
    if (r->is.kind == RL_FAULT_DELAY) {
        fate->delay_ms += r->is.delay_ms;
    } else if (r->is.kind == RL_FAULT_HANG) {
        fate->hangs = true;
    } else {
        r->gone = r->is.kind == RL_FAULT_GONE;
        *fate = (struct fate){r->is.kind, (int)number, r->is, mix(dice), fate->delay_ms, fate->hangs};
    }
}

static int check_rule(const struct fault_member *m, const struct rl_fault_rule *rule)
{
    static const char call[] = "rl_fault_add";
    static const uint32_t ops_of[] = {
        [RL_FAULT_ERROR] = RL_FAULT_ON_ALL,
        [RL_FAULT_SHORT] = RL_FAULT_ON_READ | RL_FAULT_ON_WRITE,
        [RL_FAULT_DELAY] = RL_FAULT_ON_ALL,
        [RL_FAULT_HANG] = RL_FAULT_ON_ALL,
        [RL_FAULT_FLIP] = RL_FAULT_ON_READ | RL_FAULT_ON_WRITE,
        [RL_FAULT_LOST] = RL_FAULT_ON_WRITE | RL_FAULT_ON_FLUSH,
        [RL_FAULT_MISDIRECTED] = RL_FAULT_ON_READ | RL_FAULT_ON_WRITE,
        [RL_FAULT_TORN] = RL_FAULT_ON_WRITE,
        [RL_FAULT_GONE] = RL_FAULT_ON_ALL,
    };
    if (rule->size_of != sizeof *rule)
        return rl_fail(EINVAL, call, -1, 0, "a rule of another version of the engine");
    if (rule->kind == 0 || rule->kind >= sizeof ops_of / sizeof *ops_of)
        return rl_fail(EINVAL, call, -1, 0, "a fault of kind %u is not known", rule->kind);
    if (rule->ops == 0 || rule->ops & ~ops_of[rule->kind])
        return rl_fail(EINVAL, call, -1, 0, "this fault cannot be done to these requests (kind %u, requests %#x)", rule->kind, rule->ops);
    bool must_fail = rule->kind == RL_FAULT_ERROR || rule->kind == RL_FAULT_SHORT;
    if (rule->error < (must_fail ? 1 : 0) || rule->error > 4095)
        return rl_fail(EINVAL, call, -1, 0, "%d is not an errno for this fault", rule->error);
    if (!(rule->probability >= 0 && rule->probability <= 1))
        return rl_fail(EINVAL, call, -1, 0, "a probability of %g is not between 0 and 1", rule->probability);
    if (rule->sectors > RL_MAX_SECTOR - rule->first_sector)
        return rl_fail(EINVAL, call, -1, 0, "the rule's range ends beyond any member");
    if (rule->kind == RL_FAULT_TORN && rule->bytes != RL_FAULT_SEEDED && rule->bytes % rl_max(RL_SECTOR, m->base.block_bytes))
        return rl_fail(EINVAL, call, -1, 0, "a write is torn between whole blocks of %llu bytes, not of %llu",
                       (unsigned long long)rl_max(RL_SECTOR, m->base.block_bytes), (unsigned long long)rule->bytes);
    if (rule->until_written && (rule->ops != RL_FAULT_ON_READ || rule->sectors == 0 || rule->sectors > RL_FAULT_SECTORS_MAX))
        return rl_fail(EINVAL, call, -1, 0, "until it is written: that is for reads, and for a range of at most %u sectors",
                       RL_FAULT_SECTORS_MAX);
    if (rule->shift_sectors * (int64_t)RL_SECTOR % (int64_t)m->base.block_bytes)
        return rl_fail(EINVAL, call, -1, 0, "a shift of %lld sectors is not whole blocks of %u bytes", (long long)rule->shift_sectors,
                       m->base.block_bytes);
    return 0;
}

/* ---- a request in and out ----------------------------------------------------------------------------------------- */

static void time_after(struct timespec *until, uint64_t ms)
{
    clock_gettime(CLOCK_MONOTONIC, until);
    uint64_t ns = (uint64_t)until->tv_nsec + ms % 1000 * 1000000u;
    until->tv_sec += (time_t)(ms / 1000 + ns / 1000000000u);
    until->tv_nsec = (long)(ns % 1000000000u);
}

/* The fate of a request that has just come, and its waiting. 0, or -EIO where the member is closed under it. */
static int enter(struct fault_member *m, uint32_t op, uint64_t length, uint64_t offset, struct fate *fate)
{
    *fate = (struct fate){.rule = -1};
    pthread_mutex_lock(&m->lock);
    for (unsigned i = 0; i < m->rule_count; i++)
        ask(m, i, op, length, offset, fate);
    uint64_t seen = m->releases;
    while (fate->hangs && !m->closing && m->releases == seen)
        pthread_cond_wait(&m->wake, &m->lock);
    struct timespec until;
    if (fate->delay_ms)
        time_after(&until, fate->delay_ms);
    for (int waited = 0; fate->delay_ms && !m->closing && waited == 0;)
        waited = pthread_cond_timedwait(&m->wake, &m->lock, &until);
    bool closing = m->closing;
    pthread_mutex_unlock(&m->lock);
    return closing ? rl_fail(EIO, m->base.name, -1, offset, "%s was closed while a request waited in it", m->base.name) : 0;
}

/* What the caller is told of a request whose fate was a fault. */
static int told(const struct fault_member *m, const struct fate *fate, uint64_t offset)
{
    int error = fate->kind == RL_FAULT_GONE ? ENODEV : fate->is.error;
    if (error)
        return rl_fail(error, m->base.name, -1, offset, "%s: %s (injected by rule %d)", m->base.name, strerror(error), fate->rule);
    return 0;
}

/* How much of a short request is done. */
static uint64_t part_of(const struct fault_member *m, const struct fate *fate, uint64_t length)
{
    uint64_t unit = rl_max(RL_SECTOR, m->base.block_bytes);
    if (fate->is.bytes == RL_FAULT_SEEDED)
        return fate->dice % ((length + unit - 1) / unit + (length == 0)) * unit;
    return rl_round_down(rl_min(fate->is.bytes, length), m->base.block_bytes);
}

/* Where a misdirected request goes. false: nowhere inside the member. */
static bool elsewhere(const struct fault_member *m, const struct fate *fate, uint64_t length, uint64_t *offset)
{
    *offset += (uint64_t)fate->is.shift_sectors * RL_SECTOR; /* modulo 2^64: what is below 0 is beyond the end */
    return *offset <= m->base.size_bytes && length <= m->base.size_bytes - *offset;
}

/* ---- reading ------------------------------------------------------------------------------------------------------ */

/* One bit of each sector that the rule is for, always the same one. */
static void flip(struct fault_member *m, const struct fate *fate, uint8_t *buffer, uint64_t length, uint64_t offset)
{
    struct rule gone = {.is = fate->is};
    pthread_mutex_lock(&m->lock);
    const struct rule *r = (unsigned)fate->rule < m->rule_count ? &m->rules[fate->rule] : &gone; /* cleared meanwhile */
    for (uint64_t sector = offset / RL_SECTOR; sector * RL_SECTOR < offset + length; sector++) {
        uint64_t dice = dice_of(m, (unsigned)fate->rule, ~sector), at = sector * RL_SECTOR + dice / 8 % RL_SECTOR;
        if (has_sector(r, sector) && at >= offset && at < offset + length)
            buffer[at - offset] ^= (uint8_t)(1u << dice % 8);
    }
    pthread_mutex_unlock(&m->lock);
}

static int read_by_fate(struct fault_member *m, const struct fate *fate, void *buffer, uint64_t length, uint64_t offset, uint32_t flags)
{
    uint64_t from = offset;
    int rc = 0;
    if (fate->kind == 0)
        return rl_member_pread(m->inner, buffer, length, offset, flags);
    if (fate->kind == RL_FAULT_SHORT)
        rc = rl_member_pread(m->inner, buffer, part_of(m, fate, length), offset, flags);
    else if (fate->kind == RL_FAULT_FLIP)
        rc = rl_member_pread(m->inner, buffer, length, offset, flags);
    else if (fate->kind == RL_FAULT_MISDIRECTED && elsewhere(m, fate, length, &from))
        rc = rl_member_pread(m->inner, buffer, length, from, flags);
    else if (fate->kind == RL_FAULT_MISDIRECTED)
        memset(buffer, 0, length);
    if (rc == 0 && fate->kind == RL_FAULT_FLIP)
        flip(m, fate, buffer, length, offset);
    return rc ? rc : told(m, fate, offset);
}

static int fault_pread(rl_member *member, void *buffer, uint64_t length, uint64_t offset, uint32_t flags)
{
    struct fault_member *m = (struct fault_member *)member;
    struct fate fate;
    int rc = enter(m, RL_FAULT_ON_READ, length, offset, &fate);
    return rc ? rc : read_by_fate(m, &fate, buffer, length, offset, flags);
}

/* ---- writing ------------------------------------------------------------------------------------------------------ */

/* Sectors that were written whole are good again for the rules that say so. */
static void note_written(struct fault_member *m, uint64_t length, uint64_t offset)
{
    uint64_t first = (offset + RL_SECTOR - 1) / RL_SECTOR, end = (offset + length) / RL_SECTOR;
    pthread_mutex_lock(&m->lock);
    for (unsigned i = 0; i < m->rule_count; i++) {
        const struct rl_fault_rule *rule = &m->rules[i].is;
        uint64_t low = rl_max(first, rule->first_sector), high = rl_min(end, rule->first_sector + rule->sectors);
        for (uint64_t at = low - rule->first_sector; m->rules[i].written && at + rule->first_sector < high; at++)
            m->rules[i].written[at / 8] |= (uint8_t)(1u << at % 8);
    }
    pthread_mutex_unlock(&m->lock);
}

/* F1: a write to the inner member. What is written is what was recorded, also where the caller's buffer changes meanwhile. */
static int reach(struct fault_member *m, const void *buffer, uint64_t length, uint64_t offset)
{
    uint64_t index = RL_RECORD_NONE;
    if (m->recorder)
        buffer = rl_recorder_begin(m->recorder, m->number, RL_RECORD_WRITE, buffer, length, offset, &index);
    int rc = rl_member_pwrite(m->inner, buffer, length, offset);
    if (m->recorder)
        rl_recorder_end(m->recorder, index, rc);
    if (rc == 0)
        note_written(m, length, offset);
    return rc;
}

/* Of two pieces and more, some reach and some do not. */
static int tear(struct fault_member *m, const struct fate *fate, const char *buffer, uint64_t length, uint64_t offset)
{
    bool by_sector = fate->is.bytes == 0 || fate->is.bytes == RL_FAULT_SEEDED;
    uint64_t unit = by_sector ? rl_max(RL_SECTOR, m->base.block_bytes) : fate->is.bytes, first = offset / unit;
    uint64_t count = length ? (offset + length - 1) / unit - first + 1 : 0, lost = fate->dice % rl_max(count, 1),
             kept = (lost + 1) % rl_max(count, 1);
    int rc = 0;
    for (uint64_t i = 0; rc == 0 && i < count; i++) {
        uint64_t low = rl_max(offset, (first + i) * unit), high = rl_min(offset + length, (first + i + 1) * unit);
        if (i != lost && (i == kept || mix(fate->dice + i) & 1))
            rc = reach(m, buffer + (low - offset), high - low, low);
    }
    return rc;
}

/* Wrong bytes arrive. */
static int write_flipped(struct fault_member *m, const struct fate *fate, const void *buffer, uint64_t length, uint64_t offset)
{
    uint8_t *wrong = aligned_alloc(RL_BUFFER_ALIGN, rl_round_up(rl_max(length, 1), RL_BUFFER_ALIGN)); /* as the inner member may want it */
    if (!wrong)
        return rl_fail(ENOMEM, m->base.name, -1, offset, "no memory for wrong bytes");
    memcpy(wrong, buffer, length);
    flip(m, fate, wrong, length, offset);
    int rc = reach(m, wrong, length, offset);
    free(wrong);
    return rc;
}

static int write_by_fate(struct fault_member *m, const struct fate *fate, const void *buffer, uint64_t length, uint64_t offset)
{
    uint64_t to = offset;
    int rc = 0;
    if (fate->kind == 0)
        return reach(m, buffer, length, offset);
    if (fate->kind == RL_FAULT_SHORT)
        rc = reach(m, buffer, part_of(m, fate, length), offset);
    else if (fate->kind == RL_FAULT_MISDIRECTED && elsewhere(m, fate, length, &to))
        rc = reach(m, buffer, length, to);
    else if (fate->kind == RL_FAULT_FLIP)
        rc = write_flipped(m, fate, buffer, length, offset);
    else if (fate->kind == RL_FAULT_TORN)
        rc = tear(m, fate, buffer, length, offset);
    return rc ? rc : told(m, fate, offset);
}

static int fault_pwrite(rl_member *member, const void *buffer, uint64_t length, uint64_t offset)
{
    struct fault_member *m = (struct fault_member *)member;
    struct fate fate;
    int rc = enter(m, RL_FAULT_ON_WRITE, length, offset, &fate);
    return rc ? rc : write_by_fate(m, &fate, buffer, length, offset);
}

static int fault_flush(rl_member *member)
{
    struct fault_member *m = (struct fault_member *)member;
    struct fate fate;
    uint64_t index = RL_RECORD_NONE;
    int rc = enter(m, RL_FAULT_ON_FLUSH, 0, 0, &fate);
    if (rc || fate.kind)
        return rc ? rc : told(m, &fate, 0);
    if (m->recorder)
        (void)rl_recorder_begin(m->recorder, m->number, RL_RECORD_FLUSH, NULL, 0, 0, &index);
    rc = rl_member_flush(m->inner);
    if (m->recorder)
        rl_recorder_end(m->recorder, index, rc);
    return rc;
}

static int fault_probe(rl_member *member)
{
    struct fault_member *m = (struct fault_member *)member;
    struct fate fate;
    int rc = enter(m, RL_FAULT_ON_PROBE, 0, 0, &fate);
    rc = rc || fate.kind ? rc : rl_member_probe(m->inner);
    atomic_store(&member->no_room, atomic_load(&m->inner->no_room));
    return rc || !fate.kind ? rc : told(m, &fate, 0);
}

/* ---- life --------------------------------------------------------------------------------------------------------- */

static void fault_let_go(rl_member *member)
{
    struct fault_member *m = (struct fault_member *)member;
    pthread_mutex_lock(&m->lock);
    m->closing = true;
    pthread_cond_broadcast(&m->wake);
    pthread_mutex_unlock(&m->lock);
}

static void forget_rules(struct fault_member *m)
{
    for (unsigned i = 0; i < m->rule_count; i++)
        free(m->rules[i].written);
    m->rule_count = 0;
}

static void fault_close(rl_member *member)
{
    struct fault_member *m = (struct fault_member *)member;
    if (m->recorder)
        rl_recorder_attach(m->recorder, -1);
    atomic_fetch_sub(&m->inner->users, 1);
    pthread_cond_destroy(&m->wake);
    pthread_mutex_destroy(&m->lock);
    forget_rules(m);
    free(m->rules);
}

static const struct rl_member_ops fault_ops = {.kind = "fault",
                                               .pread = fault_pread,
                                               .pwrite = fault_pwrite,
                                               .flush = fault_flush,
                                               .probe = fault_probe,
                                               .let_go = fault_let_go,
                                               .close = fault_close};

int rl_member_open_fault(rl_member *inner, uint64_t seed, rl_recorder *recorder, uint32_t number, rl_member **out)
{
    rl_member *base = NULL;
    int rc = rl_member_new(sizeof(struct fault_member), &fault_ops, inner->name, &base);
    if (rc)
        return rc;
    struct fault_member *m = (struct fault_member *)base;
    m->inner = inner;
    m->seed = seed;
    m->recorder = recorder;
    m->number = number;
    base->size_bytes = inner->size_bytes;
    base->block_bytes = inner->block_bytes;
    base->can_hang = inner->can_hang; /* for a plan with hangs the owner gives a deadline */
    base->flags = inner->flags & RL_MEMBER_READ_ONLY;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&m->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&m->lock, NULL);
    atomic_fetch_add(&inner->users, 1);
    if (recorder)
        rl_recorder_attach(recorder, 1);
    *out = base;
    return 0;
}

/* The member as one of this kind, or NULL: the error is set. */
static struct fault_member *as_fault(rl_member *member, const char *call)
{
    if (member->ops == &fault_ops)
        return (struct fault_member *)member;
    rl_fail(EINVAL, call, -1, 0, "%s takes no faults: it was not opened by rl_member_open_fault", member->name);
    return NULL;
}

int rl_fault_add(rl_member *member, const struct rl_fault_rule *rule)
{
    struct fault_member *m = as_fault(member, "rl_fault_add");
    int rc = m ? check_rule(m, rule) : -EINVAL;
    if (rc)
        return rc;
    uint8_t *written = rule->until_written ? calloc((rule->sectors + 7) / 8, 1) : NULL;
    if (rule->until_written && !written)
        return rl_fail(ENOMEM, "rl_fault_add", -1, 0, "no memory for a rule");
    pthread_mutex_lock(&m->lock);
    bool fits = m->rule_count < RL_FAULT_RULES_MAX;
    struct rule *grown = fits ? realloc(m->rules, (m->rule_count + 1) * sizeof *grown) : NULL;
    if (grown) {
        m->rules = grown;
        grown[m->rule_count] = (struct rule){.is = *rule, .written = written, .active = true};
        rc = (int)m->rule_count++;
    }
    pthread_mutex_unlock(&m->lock);
    if (!grown)
        free(written);
    if (!fits)
        return rl_fail(ENOSPC, "rl_fault_add", -1, 0, "a member takes %u rules: clear them", RL_FAULT_RULES_MAX);
    return grown ? rc : rl_fail(ENOMEM, "rl_fault_add", -1, 0, "no memory for a rule");
}

/* Lets go what hangs, lock held. */
static void release(struct fault_member *m)
{
    m->releases++;
    pthread_cond_broadcast(&m->wake);
}

int rl_fault_remove(rl_member *member, int rule)
{
    struct fault_member *m = as_fault(member, "rl_fault_remove");
    if (!m)
        return -EINVAL;
    pthread_mutex_lock(&m->lock);
    bool exists = rule >= 0 && (unsigned)rule < m->rule_count;
    if (exists) {
        m->rules[rule].active = m->rules[rule].gone = false;
        if (m->rules[rule].is.kind == RL_FAULT_HANG)
            release(m);
    }
    pthread_mutex_unlock(&m->lock);
    return exists ? 0 : rl_fail(EINVAL, "rl_fault_remove", -1, 0, "%s has no rule %d", member->name, rule);
}

int rl_fault_clear(rl_member *member)
{
    struct fault_member *m = as_fault(member, "rl_fault_clear");
    if (!m)
        return -EINVAL;
    pthread_mutex_lock(&m->lock);
    forget_rules(m);
    release(m);
    pthread_mutex_unlock(&m->lock);
    return 0;
}

int rl_fault_release(rl_member *member)
{
    struct fault_member *m = as_fault(member, "rl_fault_release");
    if (!m)
        return -EINVAL;
    pthread_mutex_lock(&m->lock);
    release(m);
    pthread_mutex_unlock(&m->lock);
    return 0;
}

int rl_fault_count(rl_member *member, int rule, struct rl_fault_counts *out)
{
    struct fault_member *m = as_fault(member, "rl_fault_count");
    if (!m)
        return -EINVAL;
    pthread_mutex_lock(&m->lock);
    bool exists = rule >= 0 && (unsigned)rule < m->rule_count;
    if (exists)
        *out = (struct rl_fault_counts){m->rules[rule].reached, m->rules[rule].hit, m->rules[rule].active};
    pthread_mutex_unlock(&m->lock);
    return exists ? 0 : rl_fail(EINVAL, "rl_fault_count", -1, 0, "%s has no rule %d", member->name, rule);
}
