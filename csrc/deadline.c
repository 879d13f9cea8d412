/* deadline.c: members that can hang. Their requests are done by threads that the owner lends (rl_member_serve), in memory of the engine's own; a caller waits for the
 * answer at most until the deadline.
 *
 * DEFINITIONS. A lane is the queue of one member. A request in it is an `ask`: waiting, in service, then answered, or parked: its caller has gone.
 *
 *   submit ──► waiting ──serve──► in service ──► answered ──► the caller takes it
 *                 │ fenced            │ fenced                    a late answer
 *                 ▼                   ▼                               │
 *              failed              parked ────────────────────────────┘──► thrown away
 *
 *   D1  A caller waits no longer than the deadline (and one look) after its request went into service, or, for one that waits for service, after the last answer of any.
 *       Requests to several members that were submitted together share that time: it is not waited out for one after the other.
 *   D2  A lane that missed it once is fenced: nothing is submitted any more, every caller is told -ENODEV, those in service are parked.
 *   D3  The memory of an ask is the lane's: an answer that comes late finds it, and reaches nobody.
 *   D4  The member lives until it is closed and every thread that serves it has come back: so it is closed by the last, which may be the one that hung.
 * Lock order: lane->lock is a leaf.
 */
#include "internal.h"

#include <time.h>

#define LOOK_NS 250000000u /* how often a caller looks whether its patience is at an end */

struct ask {
    struct ask *next;
    void *buffer; /* room for `capacity` bytes */
    uint64_t capacity, offset, length;
    uint64_t since_ns; /* when it began to wait, or went into service */
    uint8_t op, flags;
    bool in_service, answered, parked;
    int result;
};

struct lane {
    pthread_mutex_t lock;
    pthread_cond_t work, answers;
    struct ask *first, **last; /* waiting */
    struct ask *spare; /* to be used again */
    uint64_t deadline_ns, answer_count, answer_ns; /* answer_ns: when the last one came */
    unsigned parked, threads; /* threads: that have still to come back from rl_member_serve */
    bool fenced, closed;
};

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int rl_member_set_deadline(rl_member *member, uint32_t deadline_ms, unsigned threads)
{
    static const char call[] = "rl_member_set_deadline";
    if (member->lane && deadline_ms) {
        pthread_mutex_lock(&member->lane->lock);
        member->lane->deadline_ns = deadline_ms * 1000000ull;
        pthread_mutex_unlock(&member->lane->lock);
        return 0;
    }
    if (deadline_ms == 0 || threads == 0)
        return rl_fail(EINVAL, call, -1, 0, "%s: a deadline of at least 1 ms, and at least one thread", member->name);
    struct lane *lane = calloc(1, sizeof *lane);
    if (!lane)
        return rl_fail(ENOMEM, call, -1, 0, "no memory for the queue of %s", member->name);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&lane->lock, NULL);
    pthread_cond_init(&lane->work, &monotonic);
    pthread_cond_init(&lane->answers, &monotonic);
    pthread_condattr_destroy(&monotonic);
    lane->last = &lane->first;
    lane->deadline_ns = deadline_ms * 1000000ull;
    lane->threads = threads;
    member->lane = lane;
    return 0;
}

/* ---- the caller's side -------------------------------------------------------------------------------------------- */

static void put_spare(struct lane *lane, struct ask *ask)
{
    ask->next = lane->spare;
    lane->spare = ask;
}

/* An ask with room for what the request moves, what is to be written copied into it. NULL: no memory. */
static struct ask *new_ask(struct lane *lane, const struct rl_io *io)
{
    pthread_mutex_lock(&lane->lock);
    struct ask *ask = lane->spare;
    if (ask)
        lane->spare = ask->next;
    pthread_mutex_unlock(&lane->lock);
    if (!ask)
        ask = calloc(1, sizeof *ask);
    if (!ask)
        return NULL;
    uint64_t moved = io->op == RL_OP_READ || io->op == RL_OP_WRITE ? io->length : 0;
    if (ask->capacity < moved) {
        free(ask->buffer);
        ask->capacity = rl_round_up(moved, RL_BUFFER_ALIGN);
        ask->buffer = aligned_alloc(RL_BUFFER_ALIGN, ask->capacity);
    }
    if (moved && !ask->buffer) {
        free(ask);
        return NULL;
    }
    if (io->op == RL_OP_WRITE)
        memcpy(ask->buffer, io->buffer, moved);
    *ask = (struct ask){
        .buffer = ask->buffer, .capacity = ask->capacity, .offset = io->offset, .length = io->length, .op = io->op, .flags = io->flags};
    return ask;
}

static int fenced_error(rl_member *member, uint64_t offset)
{
    int rc = rl_fail(ENODEV, member->name, -1, offset, "%s has not answered for %.1f seconds", member->name,
                     (double)member->lane->deadline_ns / 1e9);
    return rl_member_noted(member, rc);
}

void rl_lane_submit(struct rl_io *io)
{
    struct lane *lane = io->member->lane;
    struct ask *ask = new_ask(lane, io);
    io->ask = ask;
    if (!ask) {
        io->result = rl_fail(ENOMEM, io->member->name, -1, io->offset, "no memory for a request to %s", io->member->name);
        return;
    }
    pthread_mutex_lock(&lane->lock);
    if (lane->fenced) { /* D2 */
        put_spare(lane, ask);
        io->ask = NULL;
        io->result = fenced_error(io->member, io->offset);
    } else {
        ask->since_ns = now_ns();
        *lane->last = ask;
        lane->last = &ask->next;
        pthread_cond_signal(&lane->work);
    }
    pthread_mutex_unlock(&lane->lock);
}

/* D2: what waits is taken out, its callers and those of what is in service find the lane fenced. */
static void fence(struct lane *lane)
{
    lane->fenced = true;
    lane->first = NULL;
    lane->last = &lane->first;
    pthread_cond_broadcast(&lane->answers);
}

/* One caller's patience. */
struct patience {
    uint64_t waited_ns, answers; /* since it or the lane got on last; the lane's count then */
    bool in_service;
};

/* D1. Lock held. Waits for a while; false: the deadline has passed. Time in which this process did not run itself (stopped, or its machine was) counts for one look only:
 * else all members would miss their deadlines at once. */
static bool wait_a_while(struct lane *lane, const struct ask *ask, struct patience *p, uint64_t *waited_ns)
{
    uint64_t look = rl_min(lane->deadline_ns / 8 + 1, LOOK_NS), before = now_ns(), until_ns = before + look;
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000u), .tv_nsec = (long)(until_ns % 1000000000u)};
    pthread_cond_timedwait(&lane->answers, &lane->lock, &until);
    bool gets_on = ask->in_service != p->in_service || (!ask->in_service && lane->answer_count != p->answers);
    uint64_t counted = rl_min(now_ns() - before, 2 * look);
    p->waited_ns = gets_on ? 0 : p->waited_ns + counted;
    *waited_ns += counted;
    p->answers = lane->answer_count;
    p->in_service = ask->in_service;
    return p->waited_ns < lane->deadline_ns;
}

void rl_lane_wait(struct rl_io *io, uint64_t *waited_ns)
{
    struct lane *lane = io->member->lane;
    struct ask *ask = io->ask;
    struct patience patience = {0};
    io->ask = NULL;
    pthread_mutex_lock(&lane->lock);
    patience.in_service = ask->in_service;
    patience.answers = lane->answer_count;
    /* of what was waited for others since it got on last */
    patience.waited_ns = rl_min(*waited_ns, now_ns() - (ask->in_service ? ask->since_ns : rl_max(ask->since_ns, lane->answer_ns)));
    while (!ask->answered && !lane->fenced) {
        if ((patience.waited_ns >= lane->deadline_ns || !wait_a_while(lane, ask, &patience, waited_ns)) && !ask->answered)
            fence(lane);
    }
    bool answered = ask->answered, in_service = ask->in_service && !answered;
    if (in_service) { /* D3: from here on it is the serving thread's */
        ask->parked = true;
        lane->parked++;
    }
    pthread_mutex_unlock(&lane->lock);
    if (in_service) {
        io->result = fenced_error(io->member, io->offset);
        return;
    }
    io->result = answered ? ask->result : fenced_error(io->member, io->offset);
    if (answered && ask->result == 0 && ask->op == RL_OP_READ && ask->length)
        memcpy(io->buffer, ask->buffer, ask->length);
    if (answered && ask->result) { /* in the words of the thread that did it */
        char why[160];
        rl_member_trouble(io->member, why, sizeof why);
        rl_fail(-ask->result, io->member->name, -1, io->offset, "%s", why);
    }
    pthread_mutex_lock(&lane->lock);
    put_spare(lane, ask);
    pthread_mutex_unlock(&lane->lock);
}

unsigned rl_member_parked(const rl_member *member)
{
    struct lane *lane = member->lane;
    if (!lane)
        return 0;
    pthread_mutex_lock(&lane->lock);
    unsigned parked = lane->parked;
    pthread_mutex_unlock(&lane->lock);
    return parked;
}

/* ---- the serving side --------------------------------------------------------------------------------------------- */

static void serve_one(rl_member *member, struct lane *lane, struct ask *ask)
{
    struct rl_io io = {
        .member = member, .buffer = ask->buffer, .offset = ask->offset, .length = ask->length, .op = ask->op, .flags = ask->flags};
    lane->first = ask->next;
    if (!lane->first)
        lane->last = &lane->first;
    ask->next = NULL;
    ask->in_service = true;
    ask->since_ns = now_ns();
    pthread_mutex_unlock(&lane->lock);
    rl_member_do(&io);
    pthread_mutex_lock(&lane->lock);
    ask->result = io.result;
    lane->answer_count++;
    lane->answer_ns = now_ns();
    if (ask->parked) {
        put_spare(lane, ask);
        lane->parked--;
    } else {
        ask->answered = true;
        pthread_cond_broadcast(&lane->answers);
    }
}

int rl_member_serve(rl_member *member)
{
    struct lane *lane = member->lane;
    if (!lane)
        return rl_fail(EINVAL, "rl_member_serve", -1, 0, "%s has no deadline", member->name);
    pthread_mutex_lock(&lane->lock);
    while (!lane->closed) {
        if (lane->first)
            serve_one(member, lane, lane->first);
        else
            pthread_cond_wait(&lane->work, &lane->lock);
    }
    bool last = --lane->threads == 0; /* D4 */
    pthread_mutex_unlock(&lane->lock);
    if (last)
        rl_member_free(member);
    return 0;
}

void rl_lane_close(struct lane *lane)
{
    pthread_mutex_lock(&lane->lock);
    RL_ASSERT(lane->fenced || !lane->first); /* callers do not race the close */
    lane->closed = true;
    pthread_cond_broadcast(&lane->work);
    pthread_mutex_unlock(&lane->lock);
}

void rl_lane_free(struct lane *lane)
{
    while (lane->spare) {
        struct ask *ask = lane->spare;
        lane->spare = ask->next;
        free(ask->buffer);
        free(ask);
    }
    pthread_mutex_destroy(&lane->lock);
    pthread_cond_destroy(&lane->work);
    pthread_cond_destroy(&lane->answers);
    free(lane);
}
