/* Messages from the relay's threads to the one that takes them: bytes in order, and an eventfd.
 *
 * The eventfd is readable exactly while the queue holds something: both change under one lock, so no
 * wake-up can be lost and none comes for nothing. Nobody else may read or write it. Not bounded here:
 * the kernel bounds what it sends unanswered. Threads of the relay call no malloc for it: each would
 * get an arena of its own.
 */
#ifndef ND_RELAY_QUEUE_H
#define ND_RELAY_QUEUE_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct nd_queue {
    pthread_mutex_t lock;
    int wake_fd;
    uint8_t *bytes; /* mapped; whole messages lie in [head, tail) */
    size_t room, head, tail;
};

int nd_queue_init(struct nd_queue *queue, int wake_fd);
void nd_queue_free(struct nd_queue *queue);

/* Append one message (relay.h tells its layout). 0, or -ENOMEM and the queue as it was. */
int nd_queue_put(struct nd_queue *queue, uint16_t kind, uint16_t device, const void *body,
                 size_t length);

/* Copy and remove as many whole messages as fit; bytes copied, 0: none, -EMSGSIZE: not even one fits. */
ssize_t nd_queue_take(struct nd_queue *queue, uint8_t *target, size_t length);

#endif
