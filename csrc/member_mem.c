/* member_mem.c: members in memory, sparse. */
#include "internal.h"

#define MEMORY_PAGE 65536u
#define MEMORY_LOCKS 64u

struct memory_member {
    rl_member base;
    pthread_mutex_t lock[MEMORY_LOCKS]; /* of a page and of its place in pages[], by number */
    char **pages;
};

static pthread_mutex_t *memory_lock(struct memory_member *m, uint64_t offset)
{
    return &m->lock[offset / MEMORY_PAGE % MEMORY_LOCKS];
}

static int memory_pread(rl_member *member, void *buffer, uint64_t length, uint64_t offset, uint32_t flags)
{
    struct memory_member *m = (struct memory_member *)member;
    (void)flags;
    for (uint64_t done = 0, step = 0; done < length; done += step) {
        uint64_t at = (offset + done) % MEMORY_PAGE;
        step = rl_min(length - done, MEMORY_PAGE - at);
        pthread_mutex_lock(memory_lock(m, offset + done));
        const char *page = m->pages[(offset + done) / MEMORY_PAGE];
        if (page)
            memcpy((char *)buffer + done, page + at, step);
        else
            memset((char *)buffer + done, 0, step);
        pthread_mutex_unlock(memory_lock(m, offset + done));
    }
    return 0;
}

static int memory_pwrite(rl_member *member, const void *buffer, uint64_t length, uint64_t offset)
{
    struct memory_member *m = (struct memory_member *)member;
    for (uint64_t done = 0, step = 0; done < length; done += step) {
        uint64_t at = (offset + done) % MEMORY_PAGE;
        step = rl_min(length - done, MEMORY_PAGE - at);
        pthread_mutex_lock(memory_lock(m, offset + done));
        char **page = &m->pages[(offset + done) / MEMORY_PAGE];
        if (!*page)
            *page = calloc(1, MEMORY_PAGE);
        if (*page)
            memcpy(*page + at, (const char *)buffer + done, step);
        bool made = *page != NULL;
        pthread_mutex_unlock(memory_lock(m, offset + done));
        if (!made)
            return rl_fail(ENOSPC, member->name, -1, offset, "no memory for a page of %s", member->name);
    }
    return 0;
}

static void memory_close(rl_member *member)
{
    struct memory_member *m = (struct memory_member *)member;
    for (uint64_t i = 0; i * MEMORY_PAGE < member->size_bytes; i++)
        free(m->pages[i]);
    free(m->pages);
    for (unsigned i = 0; i < MEMORY_LOCKS; i++)
        pthread_mutex_destroy(&m->lock[i]);
}

static const struct rl_member_ops memory_ops = {.kind = "memory",
                                                .pread = memory_pread,
                                                .pwrite = memory_pwrite,
                                                .flush = rl_member_well,
                                                .probe = rl_member_well,
                                                .close = memory_close};

int rl_member_open_memory(uint64_t size_bytes, rl_member **out)
{
    char **pages = calloc(size_bytes / MEMORY_PAGE + 1, sizeof *pages);
    rl_member *base = NULL;
    if (!pages)
        return rl_fail(ENOMEM, "rl_member_open_memory", -1, 0, "no memory for a member of %llu bytes", (unsigned long long)size_bytes);
    int rc = rl_member_new(sizeof(struct memory_member), &memory_ops, NULL, &base);
    if (rc) {
        free(pages);
        return rc;
    }
    ((struct memory_member *)base)->pages = pages;
    for (unsigned i = 0; i < MEMORY_LOCKS; i++)
        pthread_mutex_init(&((struct memory_member *)base)->lock[i], NULL);
    base->size_bytes = size_bytes;
    *out = base;
    return 0;
}
