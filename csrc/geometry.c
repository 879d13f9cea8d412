/* geometry.c: where the data lie. Pure arithmetic: no I/O, no locks, no allocation.
 *
 * A level is a row of rl_levels[]: how to check and complete its geometry, and how to locate a sector. Source of all formulas:
 * md-format.md section 2, whose notation the short names are: r array sector, c array chunk, s stripe, k data index, n slots, C chunk sectors,
 * d slot, y member sector, P the slot of the first parity.
 */
#include "internal.h"

#define CALL "rl_geometry_init"

struct level {
    int32_t number;
    int (*init)(struct rl_geometry *g);
    unsigned (*locate)(const struct rl_geometry *g, uint64_t r, struct rl_place *places, uint64_t *run);
};

/* ---- linear, raid0 ------------------------------------------------------------------------------------------------ */

static int linear_init(struct rl_geometry *g)
{
    g->array_sectors = 0;
    for (uint32_t i = 0; i < g->slots; i++) {
        if (g->chunk_sectors)
            g->length_sectors[i] = rl_round_down(g->length_sectors[i], g->chunk_sectors);
        if (g->length_sectors[i] == 0 || g->length_sectors[i] > RL_MAX_SECTOR / 1024 / g->slots)
            return rl_fail(EINVAL, CALL, (int32_t)i, 0, "slot %u holds %llu sectors of data", i, (unsigned long long)g->length_sectors[i]);
        g->array_sectors += g->length_sectors[i];
    }
    return 0;
}

static unsigned linear_locate(const struct rl_geometry *g, uint64_t r, struct rl_place *places, uint64_t *run)
{
    uint32_t d = 0;
    while (r >= g->length_sectors[d])
        r -= g->length_sectors[d++];
    places[0] = (struct rl_place){d, r};
    *run = g->length_sectors[d] - r;
    return 1;
}

/* The zone above member sector `from`: its end on the members and how many members reach into it. 0 members: no such zone. */
static uint32_t raid0_zone(const struct rl_geometry *g, uint64_t from, uint64_t *end)
{
    uint32_t members = 0;
    *end = RL_MAX_SECTOR;
    for (uint32_t i = 0; i < g->slots; i++) {
        if (g->length_sectors[i] > from) {
            members++;
            *end = rl_min(*end, g->length_sectors[i]);
        }
    }
    return members;
}

static int raid0_init(struct rl_geometry *g)
{
    int rc = linear_init(g);
    uint64_t end = 0;
    uint32_t first = raid0_zone(g, 0, &end);
    /* Both layouts agree with one zone, or where all later zones have a single member. */
    bool ambiguous = false;
    for (uint32_t members = first; rc == 0 && members; members = raid0_zone(g, end, &end))
        ambiguous |= members != first && members > 1;
    if (rc == 0 && g->layout > 2)
        return rl_fail(EOPNOTSUPP, CALL, -1, 0, "raid0 layout %u is not known", g->layout);
    if (rc == 0 && ambiguous && g->layout == 0)
        return rl_fail(EOPNOTSUPP, CALL, -1, 0,
                       "raid0 of members of unequal size, and the superblock does not say which layout (original or alternate)");
    return rc;
}

static unsigned raid0_locate(const struct rl_geometry *g, uint64_t r, struct rl_place *places, uint64_t *run)
{
    uint64_t c_sectors = g->chunk_sectors, low = 0, high = 0, zone_start = 0;
    uint32_t members = raid0_zone(g, 0, &high);
    while (r - zone_start >= (high - low) * members) {
        zone_start += (high - low) * members;
        low = high;
        members = raid0_zone(g, low, &high);
    }
    uint64_t rel = r - zone_start;
    /* layout original numbers chunks from the array's start, alternate from the zone's */
    uint64_t pick = (g->layout == 2 ? rel : r) / c_sectors % members;
    uint32_t d = 0;
    for (uint64_t seen = 0;; d++) {
        if (g->length_sectors[d] > low && seen++ == pick)
            break;
    }
    places[0] = (struct rl_place){d, low + rel / (c_sectors * members) * c_sectors + r % c_sectors};
    *run = c_sectors - r % c_sectors;
    return 1;
}

/* ---- raid1 -------------------------------------------------------------------------------------------------------- */

static int raid1_init(struct rl_geometry *g)
{
    g->copies = g->slots;
    g->used_sectors = g->array_sectors = g->dev_sectors;
    return 0;
}

static unsigned raid1_locate(const struct rl_geometry *g, uint64_t r, struct rl_place *places, uint64_t *run)
{
    for (uint32_t d = 0; d < g->slots; d++)
        places[d] = (struct rl_place){d, r};
    *run = g->array_sectors - r;
    return g->slots;
}

/* ---- raid4, 5, 6, rs ---------------------------------------------------------------------------------------------- */

static int parity_init(struct rl_geometry *g)
{
    static const uint8_t raid6_layouts[] = {0, 1, 2, 3, 4, 5, 8, 9, 10, 16, 17, 18, 19, 20};
    bool known = true;
    g->parity = g->level == RL_LEVEL_RS ? g->layout : g->level == 6 ? 2 : 1;
    if (g->level == 5) {
        known = g->layout <= 5;
    } else if (g->level == 6) {
        known = false;
        for (unsigned i = 0; i < sizeof raid6_layouts; i++)
            known |= g->layout == raid6_layouts[i];
    } else if (g->level == RL_LEVEL_RS) {
        known = g->parity >= 1 && g->parity <= RL_PARITY_MAX;
    }
    if (!known)
        return rl_fail(EOPNOTSUPP, CALL, -1, 0, "layout %u of level %d is not known", g->layout, g->level);
    if (g->slots < g->parity + 1)
        return rl_fail(EINVAL, CALL, -1, 0, "level %d needs at least %u members, not %u", g->level, g->parity + 1, g->slots);
    g->data = g->slots - g->parity;
    if (g->data > (g->parity > 2 ? 251u : 253u))
        return rl_fail(EINVAL, CALL, -1, 0, "%u data members are more than the code has coefficients for", g->data);
    g->used_sectors = rl_round_down(g->dev_sectors, g->chunk_sectors);
    g->array_sectors = g->used_sectors * g->data;
    return 0;
}

/* Slots of the parities of stripe s, first P. */
static void parity_slots(const struct rl_geometry *g, uint64_t s, uint32_t *slots)
{
    uint32_t n = g->slots, p = 0;
    uint32_t forward = (uint32_t)(s % n), q_own = n - 1;
    switch (g->level == 4 ? 5 : g->level == RL_LEVEL_RS ? 2 : g->layout) {
    case 0:
    case 2:
    case 10: p = n - 1 - forward; break;
    case 1:
    case 3:
    case 8: p = forward; break;
    case 4:
    case 20: p = 0; break;
    case 5: p = n - g->parity; break;
    case 9: p = n - 1 - (uint32_t)((s + 1) % n); break;
    case 16:
    case 18: p = n - 2 - (uint32_t)(s % (n - 1)); break;
    case 17:
    case 19: p = (uint32_t)(s % (n - 1)); break;
    default: RL_ASSERT(!"layout checked by parity_init");
    }
    slots[0] = p;
    for (uint32_t i = 1; i < g->parity; i++)
        slots[i] = (p + i) % n;
    if (g->level == 6 && g->layout >= 16)
        slots[1] = q_own;
    if (g->level == 6 && g->layout == 10)
        slots[1] = (p + n - 1) % n;
}

/* Slot of the k-th data chunk of a stripe whose parities are at slots[]. */
static uint32_t data_slot(const struct rl_geometry *g, const uint32_t *slots, uint32_t k)
{
    uint32_t n = g->slots, p = slots[0];
    if (g->level == 4)
        return k;
    if (g->level == RL_LEVEL_RS)
        return (p + g->parity + k) % n;
    if (g->level == 5 || g->layout >= 16) { /* the -6 layouts are raid5's on the first n-1 slots */
        uint32_t ring = g->level == 5 ? n : n - 1;
        switch (g->layout & 15) {
        case 2:
        case 3: return (p + 1 + k) % ring;
        default: return k + (k >= p);
        }
    }
    switch (g->layout) {
    case 2:
    case 3: return (p + 2 + k) % n;
    case 4: return k + 2;
    case 5: return k;
    case 10: return (p + 1 + k) % n;
    default: return p == n - 1 ? k + 1 : k < p ? k : k + 2;
    }
}

static bool is_ddf(const struct rl_geometry *g)
{
    return g->level == 6 && g->layout >= 8 && g->layout <= 10;
}

int rl_geometry_stripe(const struct rl_geometry *g, uint64_t stripe, int16_t *slot_of, uint16_t *position)
{
    uint32_t slots[RL_PARITY_MAX], n = g->slots;
    uint16_t index_of[RL_SLOTS_MAX];
    parity_slots(g, stripe, slots);
    uint32_t nd = is_ddf(g) ? n : g->data;
    if (is_ddf(g)) {
        /* the coefficient goes by the slot's number; the places of P and Q hold zeros */
        for (uint32_t d = 0; d < n; d++) {
            slot_of[d] = d == slots[0] || d == slots[1] ? -1 : (int16_t)d;
            index_of[d] = (uint16_t)d;
        }
    } else {
        /* md's order: from the slot after the last parity, cyclically, skipping parities */
        uint32_t d = g->level == 6 || g->level == RL_LEVEL_RS ? (slots[g->parity - 1] + 1) % n : 0;
        for (uint32_t i = 0; i < nd; d = (d + 1) % n) {
            bool parity = false;
            for (uint32_t r = 0; r < g->parity; r++)
                parity |= d == slots[r];
            if (parity)
                continue;
            slot_of[i] = (int16_t)d;
            index_of[d] = (uint16_t)i++;
        }
    }
    for (uint32_t r = 0; r < g->parity; r++)
        slot_of[nd + r] = (int16_t)slots[r];
    for (uint32_t k = 0; k < g->data; k++)
        position[k] = index_of[data_slot(g, slots, k)];
    return (int)nd;
}

static unsigned parity_locate(const struct rl_geometry *g, uint64_t r, struct rl_place *places, uint64_t *run)
{
    uint32_t slots[RL_PARITY_MAX];
    uint64_t c = r / g->chunk_sectors, offset = r % g->chunk_sectors;
    parity_slots(g, c / g->data, slots);
    places[0] = (struct rl_place){data_slot(g, slots, (uint32_t)(c % g->data)), c / g->data * g->chunk_sectors + offset};
    *run = g->chunk_sectors - offset;
    return 1;
}

int rl_geometry_parity_only(const struct rl_geometry *g, uint32_t slot)
{
    if (g->parity == 0)
        return 0;
    /* every rotation has a period of at most n stripes */
    for (uint32_t s = 0; s < g->slots; s++) {
        uint32_t slots[RL_PARITY_MAX];
        bool found = false;
        parity_slots(g, s, slots);
        for (uint32_t i = 0; i < g->parity; i++)
            found |= slots[i] == slot;
        if (!found)
            return 0;
    }
    return 1;
}

/* ---- raid10 ------------------------------------------------------------------------------------------------------- */

static int raid10_init(struct rl_geometry *g)
{
    uint32_t kind = g->layout >> 17 & 3, n = g->slots;
    g->near_copies = g->layout & 0xff;
    g->far_copies = g->layout >> 8 & 0xff;
    g->far_offset = g->layout >> 16 & 1;
    g->copies = g->near_copies * g->far_copies;
    if (g->layout >> 19 || g->copies == 0 || kind == 3)
        return rl_fail(EOPNOTSUPP, CALL, -1, 0, "raid10 layout %#x is not known", g->layout);
    if (g->copies > n || g->copies > RL_COPIES_MAX)
        return rl_fail(EINVAL, CALL, -1, 0, "raid10 layout %#x makes %u copies on %u members (at most %d are handled)", g->layout,
                       g->copies, n, RL_COPIES_MAX);
    if (g->far_offset && g->near_copies > 1 && n % g->near_copies)
        return rl_fail(EOPNOTSUPP, CALL, -1, 0, "raid10 layout %#x maps two chunks to one place with %u members", g->layout, n);
    g->far_set = kind == 0 ? n : kind == 1 ? n / g->far_copies : g->copies;
    uint64_t chunks = g->dev_sectors / g->chunk_sectors / g->far_copies * n / g->near_copies;
    uint64_t used = (chunks * g->copies + n - 1) / n;
    g->used_sectors = used * g->chunk_sectors;
    g->array_sectors = chunks * g->chunk_sectors;
    g->stride_sectors = g->far_offset ? g->chunk_sectors : used / g->far_copies * g->chunk_sectors;
    return 0;
}

/* The slot of the next far copy of a chunk at slot d. */
static uint32_t raid10_far(const struct rl_geometry *g, uint32_t d)
{
    uint32_t n = g->slots, set = g->far_set, group = d / set, last = (n / set - 1) * set;
    d += g->near_copies;
    if (n % set && d > last) /* sets do not divide the members: the last set is larger */
        return last + (d - last) % (set + n % set);
    return d % set + set * group;
}

static unsigned raid10_locate(const struct rl_geometry *g, uint64_t r, struct rl_place *places, uint64_t *run)
{
    uint64_t c_sectors = g->chunk_sectors, linear = r / c_sectors * g->near_copies;
    uint64_t row = linear / g->slots;
    uint32_t dev = (uint32_t)(linear % g->slots);
    unsigned count = 0;
    uint64_t sector = (g->far_offset ? row * g->far_copies : row) * c_sectors + r % c_sectors;
    for (uint32_t i = 0; i < g->near_copies; i++) {
        uint32_t d = dev;
        uint64_t y = sector;
        places[count++] = (struct rl_place){d, y};
        for (uint32_t f = 1; f < g->far_copies; f++) {
            d = raid10_far(g, d);
            y += g->stride_sectors;
            places[count++] = (struct rl_place){d, y};
        }
        if (++dev == g->slots) {
            dev = 0;
            sector += c_sectors;
        }
    }
    *run = c_sectors - r % c_sectors;
    return count;
}

static int raid10_inverse(const struct rl_geometry *g, uint32_t slot, uint64_t y, uint64_t *r, uint64_t *run)
{
    uint64_t chunk = y / g->chunk_sectors, stride = g->stride_sectors / g->chunk_sectors;
    uint64_t copy = g->far_offset ? chunk % g->far_copies : stride ? chunk / stride : 0;
    uint64_t row = g->far_offset ? chunk / g->far_copies : chunk - copy * stride;
    *run = g->chunk_sectors - y % g->chunk_sectors;
    if (copy >= g->far_copies)
        return -ENOENT;
    /* which slot's copy number `copy` is on this one? */
    for (uint32_t first = 0; first < g->slots; first++) {
        uint32_t d = first;
        for (uint64_t f = 0; f < copy; f++)
            d = raid10_far(g, d);
        if (d != slot)
            continue;
        *r = (row * g->slots + first) / g->near_copies * g->chunk_sectors + y % g->chunk_sectors;
        return *r < g->array_sectors ? 0 : -ENOENT;
    }
    return -ENOENT;
}

/* ---- the table, and what goes through it -------------------------------------------------------------------------- */

static const struct level levels[] = {
    {RL_LEVEL_LINEAR, linear_init, linear_locate},
    {0, raid0_init, raid0_locate},
    {1, raid1_init, raid1_locate},
    {4, parity_init, parity_locate},
    {5, parity_init, parity_locate},
    {6, parity_init, parity_locate},
    {10, raid10_init, raid10_locate},
    {RL_LEVEL_RS, parity_init, parity_locate},
};

static const struct level *find_level(int32_t number)
{
    for (unsigned i = 0; i < sizeof levels / sizeof levels[0]; i++) {
        if (levels[i].number == number)
            return &levels[i];
    }
    return NULL;
}

int rl_geometry_init(struct rl_geometry *g)
{
    const struct level *level = find_level(g->level);
    if (!level)
        return rl_fail(EOPNOTSUPP, CALL, -1, 0, "level %d is not handled", g->level);
    if (g->slots < 1 || g->slots > RL_SLOTS_MAX)
        return rl_fail(EINVAL, CALL, -1, 0, "%u members: between 1 and %d are handled", g->slots, RL_SLOTS_MAX);
    bool needs_chunk = g->level != 1 && g->level != RL_LEVEL_LINEAR;
    if (needs_chunk && (g->chunk_sectors == 0 || g->chunk_sectors & (g->chunk_sectors - 1)))
        return rl_fail(EINVAL, CALL, -1, 0, "a chunk of %u sectors is not a power of two", g->chunk_sectors);
    if (needs_chunk && (g->chunk_sectors > 1u << 21 || (g->level > 1 && g->chunk_sectors < 8)))
        return rl_fail(EINVAL, CALL, -1, 0, "a chunk of %u sectors is not between 4 KiB and 1 GiB", g->chunk_sectors);
    if (g->level >= 1 && (g->dev_sectors == 0 || g->dev_sectors > RL_MAX_SECTOR / 1024 / RL_SLOTS_MAX))
        return rl_fail(EINVAL, CALL, -1, 0, "%llu sectors on each member", (unsigned long long)g->dev_sectors);
    g->parity = g->near_copies = g->far_copies = g->far_set = g->far_offset = 0;
    g->copies = 1;
    g->data = g->slots;
    g->stride_sectors = g->used_sectors = 0;
    int rc = level->init(g);
    if (rc == 0 && g->array_sectors == 0)
        return rl_fail(EINVAL, CALL, -1, 0, "the members are smaller than one chunk");
    return rc;
}

int rl_geometry_locate(const struct rl_geometry *g, uint64_t sector, struct rl_place *places, uint64_t *run)
{
    RL_ASSERT(sector < g->array_sectors);
    return (int)find_level(g->level)->locate(g, sector, places, run);
}

int rl_geometry_inverse(const struct rl_geometry *g, uint32_t slot, uint64_t member_sector, uint64_t *array_sector, uint64_t *run)
{
    RL_ASSERT(slot < g->slots);
    if (g->level == 10)
        return raid10_inverse(g, slot, member_sector, array_sector, run);
    RL_ASSERT(g->level == 1);
    *array_sector = member_sector;
    *run = member_sector < g->array_sectors ? g->array_sectors - member_sector : 0;
    return *run ? 0 : -ENOENT;
}

/* raid10: every chunk pattern repeats after the first n array chunks; each must have a copy that is present. */
static int raid10_enough(const struct rl_geometry *g, const uint8_t *present)
{
    uint64_t chunks = rl_min(g->array_sectors / g->chunk_sectors, g->slots);
    for (uint64_t c = 0; c < chunks; c++) {
        struct rl_place places[RL_SLOTS_MAX];
        uint64_t run = 0;
        unsigned count = raid10_locate(g, c * g->chunk_sectors, places, &run), found = 0;
        for (unsigned i = 0; i < count; i++)
            found += present[places[i].slot] != 0;
        if (!found)
            return 0;
    }
    return 1;
}

int rl_geometry_enough(const struct rl_geometry *g, const uint8_t *present)
{
    uint32_t missing = 0;
    for (uint32_t d = 0; d < g->slots; d++)
        missing += present[d] == 0;
    if (g->level == 10)
        return raid10_enough(g, present);
    return missing <= (g->level == 1 ? g->slots - 1 : g->parity);
}
