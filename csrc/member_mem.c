/* member_mem.c: members in memory: sparse, and forked by copy-on-write.
 *
 * A member has a table of chunks, a chunk has pages; what is NULL is zeros. Chunks and pages are counted by who holds them.
 *
 * C1  What is counted more than once never changes: who writes to it makes a copy for itself, and lets go of its share.
 * C2  A count of one is its holder's alone. Only a fork of the holder could raise it, and that takes all of the holder's locks; so under one of them it stays.
 */
#include "internal.h"

#define PAGE_BYTES 4096u /* what the first write to a shared place copies */
#define CHUNK_PAGES 64u
#define CHUNK_BYTES (PAGE_BYTES * CHUNK_PAGES)
#define MEMORY_LOCKS 16u

struct page {
    _Alignas(16) char data[PAGE_BYTES];
    atomic_uint count;
};

struct chunk {
    struct page *pages[CHUNK_PAGES];
    atomic_uint count;
};

struct memory_member {
    rl_member base;
    pthread_mutex_t lock[MEMORY_LOCKS]; /* of a chunk's place in the table and of what is below it, by number */
    uint64_t chunk_count;
    struct chunk **chunks;
};

static pthread_mutex_t *memory_lock(struct memory_member *m, uint64_t chunk)
{
    return &m->lock[chunk % MEMORY_LOCKS];
}

static void page_put(struct page *page)
{
    if (page && atomic_fetch_sub(&page->count, 1) == 1)
        free(page);
}

static void chunk_put(struct chunk *chunk)
{
    if (!chunk || atomic_fetch_sub(&chunk->count, 1) != 1)
        return;
    for (unsigned i = 0; i < CHUNK_PAGES; i++)
        page_put(chunk->pages[i]);
    free(chunk);
}

/* The chunk at a place as the member's own, lock held. NULL: no memory. */
static struct chunk *chunk_own(struct chunk **place)
{
    struct chunk *shared = *place;
    if (shared && atomic_load(&shared->count) == 1) /* C2 */
        return shared;
    struct chunk *own = calloc(1, sizeof *own);
    if (!own)
        return NULL;
    atomic_init(&own->count, 1);
    for (unsigned i = 0; shared && i < CHUNK_PAGES; i++) {
        own->pages[i] = shared->pages[i];
        if (own->pages[i])
            atomic_fetch_add(&own->pages[i]->count, 1);
    }
    *place = own;
    chunk_put(shared); /* C1: only now, for with it goes the right to read the others' pages */
    return own;
}

/* A page of the member's own chunk as its own. whole: all of it will be written, and what it holds does not matter. */
static struct page *page_own(struct page **place, bool whole)
{
    struct page *shared = *place;
    if (shared && atomic_load(&shared->count) == 1) /* C2 */
        return shared;
    struct page *own = malloc(sizeof *own);
    if (!own)
        return NULL;
    atomic_init(&own->count, 1);
    if (!whole && shared)
        memcpy(own->data, shared->data, PAGE_BYTES);
    else if (!whole)
        memset(own->data, 0, PAGE_BYTES);
    *place = own;
    page_put(shared);
    return own;
}

static int memory_pread(rl_member *member, void *buffer, uint64_t length, uint64_t offset, uint32_t flags)
{
    struct memory_member *m = (struct memory_member *)member;
    (void)flags;
    for (uint64_t done = 0; done < length;) {
        uint64_t number = (offset + done) / CHUNK_BYTES, end = rl_min(length, (number + 1) * CHUNK_BYTES - offset);
        pthread_mutex_lock(memory_lock(m, number));
        const struct chunk *chunk = m->chunks[number];
        for (uint64_t step = 0; done < end; done += step) {
            uint64_t at = (offset + done) % PAGE_BYTES;
            const struct page *page = chunk ? chunk->pages[(offset + done) / PAGE_BYTES % CHUNK_PAGES] : NULL;
            step = rl_min(end - done, PAGE_BYTES - at);
            if (page)
                memcpy((char *)buffer + done, page->data + at, step);
            else
                memset((char *)buffer + done, 0, step);
        }
        pthread_mutex_unlock(memory_lock(m, number));
    }
    return 0;
}

static int memory_pwrite(rl_member *member, const void *buffer, uint64_t length, uint64_t offset)
{
    struct memory_member *m = (struct memory_member *)member;
    bool made = true;
    for (uint64_t done = 0; made && done < length;) {
        uint64_t number = (offset + done) / CHUNK_BYTES, end = rl_min(length, (number + 1) * CHUNK_BYTES - offset);
        pthread_mutex_lock(memory_lock(m, number));
        struct chunk *chunk = chunk_own(&m->chunks[number]);
        made = chunk != NULL;
        for (uint64_t step = 0; made && done < end; done += step) {
            uint64_t at = (offset + done) % PAGE_BYTES;
            step = rl_min(end - done, PAGE_BYTES - at);
            struct page *page = page_own(&chunk->pages[(offset + done) / PAGE_BYTES % CHUNK_PAGES], step == PAGE_BYTES);
            made = page != NULL;
            if (made)
                memcpy(page->data + at, (const char *)buffer + done, step);
        }
        pthread_mutex_unlock(memory_lock(m, number));
    }
    return made ? 0 : rl_fail(ENOSPC, member->name, -1, offset, "no memory for a page of %s", member->name);
}

/* Whole pages go, and with them their memory. */
static int memory_zero(rl_member *member, uint64_t length, uint64_t offset, uint32_t flags)
{
    struct memory_member *m = (struct memory_member *)member;
    bool made = true;
    (void)flags;
    for (uint64_t done = 0; made && done < length;) {
        uint64_t number = (offset + done) / CHUNK_BYTES, end = rl_min(length, (number + 1) * CHUNK_BYTES - offset);
        pthread_mutex_lock(memory_lock(m, number));
        struct chunk *chunk = m->chunks[number] ? chunk_own(&m->chunks[number]) : NULL;
        made = chunk || !m->chunks[number];
        for (uint64_t step = 0; made && done < end; done += step) {
            uint64_t at = (offset + done) % PAGE_BYTES;
            struct page **place = chunk ? &chunk->pages[(offset + done) / PAGE_BYTES % CHUNK_PAGES] : NULL;
            step = rl_min(end - done, PAGE_BYTES - at);
            if (!place || !*place)
                continue;
            if (step == PAGE_BYTES) {
                page_put(*place);
                *place = NULL;
                continue;
            }
            struct page *page = page_own(place, false);
            made = page != NULL;
            if (made)
                memset(page->data + at, 0, step);
        }
        pthread_mutex_unlock(memory_lock(m, number));
    }
    return made ? 0 : rl_fail(ENOSPC, member->name, -1, offset, "no memory for a page of %s", member->name);
}

static void memory_close(rl_member *member)
{
    struct memory_member *m = (struct memory_member *)member;
    for (uint64_t i = 0; i < m->chunk_count; i++)
        chunk_put(m->chunks[i]);
    free(m->chunks);
    for (unsigned i = 0; i < MEMORY_LOCKS; i++)
        pthread_mutex_destroy(&m->lock[i]);
}

static const struct rl_member_ops memory_ops = {.kind = "memory",
                                                .pread = memory_pread,
                                                .pwrite = memory_pwrite,
                                                .zero = memory_zero,
                                                .flush = rl_member_well,
                                                .probe = rl_member_well,
                                                .close = memory_close};

int rl_member_open_memory(uint64_t size_bytes, rl_member **out)
{
    uint64_t count = size_bytes / CHUNK_BYTES + 1;
    struct chunk **chunks = calloc(count, sizeof *chunks);
    rl_member *base = NULL;
    if (!chunks)
        return rl_fail(ENOMEM, "rl_member_open_memory", -1, 0, "no memory for a member of %llu bytes", (unsigned long long)size_bytes);
    int rc = rl_member_new(sizeof(struct memory_member), &memory_ops, NULL, &base);
    if (rc) {
        free(chunks);
        return rc;
    }
    struct memory_member *m = (struct memory_member *)base;
    m->chunks = chunks;
    m->chunk_count = count;
    for (unsigned i = 0; i < MEMORY_LOCKS; i++)
        pthread_mutex_init(&m->lock[i], NULL);
    base->size_bytes = size_bytes;
    *out = base;
    return 0;
}

int rl_member_fork(rl_member *member, rl_member **out)
{
    if (member->ops != &memory_ops)
        return rl_fail(EINVAL, "rl_member_fork", -1, 0, "%s is not a member in memory: only those can be forked", member->name);
    struct memory_member *origin = (struct memory_member *)member;
    int rc = rl_member_open_memory(member->size_bytes, out);
    if (rc)
        return rc;
    struct memory_member *fork = (struct memory_member *)*out;
    /* all locks at once: the state of one moment, with no later write in it without the earlier ones */
    for (unsigned i = 0; i < MEMORY_LOCKS; i++)
        pthread_mutex_lock(&origin->lock[i]);
    for (uint64_t i = 0; i < origin->chunk_count; i++) {
        fork->chunks[i] = origin->chunks[i];
        if (fork->chunks[i])
            atomic_fetch_add(&fork->chunks[i]->count, 1);
    }
    for (unsigned i = MEMORY_LOCKS; i-- > 0;)
        pthread_mutex_unlock(&origin->lock[i]);
    return 0;
}
