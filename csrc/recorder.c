/* recorder.c: every write and flush that reaches a member, in order.
 *
 * One recorder may serve several members: the numbers of what begins and ends are of one sequence. What began after something else had ended is ordered by it; what
 * overlaps is not, and a crash may leave it in any order.
 */
#include "internal.h"

struct entry {
    struct rl_record record;
    char *data;
};

struct rl_recorder {
    pthread_mutex_t lock;   /* a leaf; of all below */
    uint64_t limit_bytes, used_bytes;
    uint64_t sequence;      /* the last number given */
    struct entry *entries;
    uint64_t count, room;
    unsigned under_way;     /* begun and not ended */
    unsigned members;       /* attached */
    bool full;              /* something is missing from here on */
};

int rl_recorder_new(uint64_t limit_bytes, rl_recorder **out)
{
    rl_recorder *r = calloc(1, sizeof *r);
    if (!r)
        return rl_fail(ENOMEM, "rl_recorder_new", -1, 0, "no memory for a recorder");
    pthread_mutex_init(&r->lock, NULL);
    r->limit_bytes = limit_bytes;
    *out = r;
    return 0;
}

static void forget(rl_recorder *r)
{
    for (uint64_t i = 0; i < r->count; i++)
        free(r->entries[i].data);
    free(r->entries);
    r->entries = NULL;
    r->count = r->room = r->used_bytes = 0;
    r->full = false;
}

int rl_recorder_free(rl_recorder *r)
{
    if (!r)
        return 0;
    pthread_mutex_lock(&r->lock);
    unsigned members = r->members;
    pthread_mutex_unlock(&r->lock);
    if (members)
        return rl_fail(EBUSY, "rl_recorder_free", -1, 0, "%u members are recorded: close them first", members);
    forget(r);
    pthread_mutex_destroy(&r->lock);
    free(r);
    return 0;
}

int rl_recorder_clear(rl_recorder *r)
{
    pthread_mutex_lock(&r->lock);
    unsigned under_way = r->under_way;
    if (!under_way)
        forget(r);
    pthread_mutex_unlock(&r->lock);
    return under_way ? rl_fail(EBUSY, "rl_recorder_clear", -1, 0, "%u requests are under way", under_way) : 0;
}

void rl_recorder_attach(rl_recorder *r, int members)
{
    pthread_mutex_lock(&r->lock);
    r->members += (unsigned)members;
    pthread_mutex_unlock(&r->lock);
}

/* ---- recording ---------------------------------------------------------------------------------------------------- */

/* Room for one entry with that much data, lock held. false: there is none, from here on. */
static bool make_room(rl_recorder *r, uint64_t length)
{
    uint64_t bytes = length + sizeof *r->entries;
    bool fits = !r->full && bytes <= r->limit_bytes - r->used_bytes;
    if (fits && r->count == r->room) {
        uint64_t room = r->room ? 2 * r->room : 64;
        struct entry *grown = realloc(r->entries, room * sizeof *grown);
        fits = grown != NULL;
        r->entries = grown ? grown : r->entries;
        r->room = grown ? room : r->room;
    }
    r->used_bytes += fits ? bytes : 0;
    return fits;
}

const void *rl_recorder_begin(rl_recorder *r, uint32_t member, uint32_t op, const void *data, uint64_t length, uint64_t offset,
                              uint64_t *index)
{
    char *copy = data ? malloc(length ? length : 1) : NULL;
    bool copied = copy || !data;
    if (copy)
        memcpy(copy, data, length);
    pthread_mutex_lock(&r->lock);
    bool kept = copied && make_room(r, data ? length : 0);
    *index = kept ? r->count : RL_RECORD_NONE;
    if (kept) {
        r->entries[r->count++] = (struct entry){
            .record = {.begun = ++r->sequence, .offset = offset, .length = length, .member = member, .op = op},
            .data = copy,
        };
        r->under_way++;
    }
    r->full |= !kept;
    pthread_mutex_unlock(&r->lock);
    if (!kept)
        free(copy);
    return kept ? copy : data;
}

void rl_recorder_end(rl_recorder *r, uint64_t index, int result)
{
    if (index == RL_RECORD_NONE)
        return;
    pthread_mutex_lock(&r->lock);
    r->entries[index].record.ended = ++r->sequence;
    r->entries[index].record.result = result;
    r->under_way--;
    pthread_mutex_unlock(&r->lock);
}

/* ---- reading ------------------------------------------------------------------------------------------------------ */

int64_t rl_recorder_count(rl_recorder *r)
{
    pthread_mutex_lock(&r->lock);
    uint64_t count = r->count;
    bool full = r->full;
    pthread_mutex_unlock(&r->lock);
    if (full)
        return rl_fail(ENOBUFS, "rl_recorder_count", -1, 0,
                       "the record is not whole: its %llu bytes were full after %llu requests; give the recorder a larger limit",
                       (unsigned long long)r->limit_bytes, (unsigned long long)count);
    return (int64_t)count;
}

/* A copy of entry `index`. Its data stay where they are until the record is cleared. */
static int look(rl_recorder *r, const char *call, uint64_t index, struct entry *out)
{
    pthread_mutex_lock(&r->lock);
    uint64_t count = r->count;
    if (index < count)
        *out = r->entries[index];
    pthread_mutex_unlock(&r->lock);
    return index < count ? 0
                         : rl_fail(EINVAL, call, -1, 0, "there is no entry %llu: the record has %llu", (unsigned long long)index,
                                   (unsigned long long)count);
}

int rl_recorder_get(rl_recorder *r, uint64_t index, struct rl_record *out)
{
    struct entry e;
    int rc = look(r, "rl_recorder_get", index, &e);
    if (rc == 0)
        *out = e.record;
    return rc;
}

static int check_part(const char *call, const struct entry *e, uint64_t first, uint64_t length)
{
    if (!e->data || first > e->record.length || length > e->record.length - first)
        return rl_fail(EINVAL, call, -1, first, "%llu bytes from %llu on are not inside the entry's data", (unsigned long long)length,
                       (unsigned long long)first);
    return 0;
}

int rl_recorder_data(rl_recorder *r, uint64_t index, void *buffer, uint64_t length, uint64_t first)
{
    struct entry e;
    int rc = look(r, "rl_recorder_data", index, &e);
    rc = rc ? rc : check_part("rl_recorder_data", &e, first, length);
    if (rc == 0)
        memcpy(buffer, e.data + first, length);
    return rc;
}

int rl_recorder_apply(rl_recorder *r, uint64_t index, rl_member *to, uint64_t length, uint64_t first)
{
    struct entry e;
    int rc = look(r, "rl_recorder_apply", index, &e);
    rc = rc ? rc : check_part("rl_recorder_apply", &e, first, length);
    return rc ? rc : rl_member_pwrite(to, e.data + first, length, e.record.offset + first);
}
