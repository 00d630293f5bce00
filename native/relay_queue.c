/* The queue: one mapped buffer that grows, moves its bytes down, and shrinks when it is emptied. */
#define _GNU_SOURCE
#include "relay_parts.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#define ROOM_BYTES 65536 /* at the start and again when empty; touched only as far as used */

int nd_queue_init(struct nd_queue *queue, int wake_fd)
{
    void *bytes = mmap(NULL, ROOM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bytes == MAP_FAILED)
        return -ENOMEM;
    *queue = (struct nd_queue){.wake_fd = wake_fd, .bytes = bytes, .room = ROOM_BYTES};
    pthread_mutex_init(&queue->lock, NULL);
    return 0;
}

void nd_queue_free(struct nd_queue *queue)
{
    pthread_mutex_destroy(&queue->lock);
    munmap(queue->bytes, queue->room);
}

static size_t aligned(size_t length)
{
    return (length + 7) & ~(size_t)7;
}

static int resize(struct nd_queue *queue, size_t room)
{
    void *bytes = mremap(queue->bytes, queue->room, room, MREMAP_MAYMOVE);
    if (bytes == MAP_FAILED)
        return -ENOMEM;
    queue->bytes = bytes;
    queue->room = room;
    return 0;
}

static int make_room(struct nd_queue *queue, size_t length)
{
    size_t used = queue->tail - queue->head;
    if (length <= queue->room - queue->tail)
        return 0;
    /* Moved only when at least half of the room is free: a message costs the same on average,
     * however long the queue is. */
    if (used + length > queue->room / 2) {
        int error = resize(queue, 2 * (queue->room + length));
        if (error)
            return error;
    }
    memmove(queue->bytes, queue->bytes + queue->head, used);
    queue->head = 0;
    queue->tail = used;
    return 0;
}

int nd_queue_put(struct nd_queue *queue, uint16_t kind, uint16_t device, const void *body,
                 size_t length)
{
    nd_message message = {(uint32_t)(sizeof message + length), kind, device};
    pthread_mutex_lock(&queue->lock);
    int error = make_room(queue, aligned(message.length));
    if (!error) {
        memcpy(queue->bytes + queue->tail, &message, sizeof message);
        memcpy(queue->bytes + queue->tail + sizeof message, body, length);
        if (queue->head == queue->tail)
            eventfd_write(queue->wake_fd, 1);
        queue->tail += aligned(message.length);
    }
    pthread_mutex_unlock(&queue->lock);
    return error;
}

ssize_t nd_relay_take(nd_relay *relay, uint8_t *room, size_t length)
{
    struct nd_queue *queue = &relay->queue;
    pthread_mutex_lock(&queue->lock);
    bool had_some = queue->head < queue->tail;
    size_t taken = 0;
    while (queue->head + taken < queue->tail) {
        nd_message message;
        memcpy(&message, queue->bytes + queue->head + taken, sizeof message);
        if (aligned(message.length) > length - taken)
            break;
        taken += aligned(message.length);
    }
    memcpy(room, queue->bytes + queue->head, taken);
    queue->head += taken;
    if (had_some && queue->head == queue->tail) {
        eventfd_t ignored;
        eventfd_read(queue->wake_fd, &ignored);
        queue->head = queue->tail = 0;
        if (queue->room > ROOM_BYTES)
            resize(queue, ROOM_BYTES); /* that it fails to shrink does no harm */
    }
    pthread_mutex_unlock(&queue->lock);
    return had_some && taken == 0 ? -EMSGSIZE : (ssize_t)taken;
}
