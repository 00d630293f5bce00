/* The threads: read a request, answer it or queue it. */
#define _GNU_SOURCE
#include "relay.h"

#include "fuse_request.h"
#include "relay_files.h"
#include "relay_queue.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define STACK_BYTES (256 * 1024) /* of which a few pages are touched */
#define STOP_SIGNAL (SIGRTMAX - 1)
#define STOP_AGAIN_NS 2000000

struct worker {
    nd_relay *relay;
    pthread_t thread;
    uint16_t device;
    bool has_ended;
};

struct nd_relay {
    struct nd_files files;
    struct nd_queue queue;
    pthread_mutex_t lock; /* of everything below; atomic access where it is read without */
    pthread_cond_t changed; /* a thread has ended */
    struct worker workers[ND_RELAY_THREADS_MAX];
    unsigned started, running, threads_max;
    bool is_stopping, is_ended; /* atomic; ENDED was queued */
    int devices[ND_RELAY_THREADS_MAX];
    size_t device_count;
    unsigned waiting;  /* atomic: threads at a device, or on their way there since they were started */
    uint64_t dropped;  /* atomic */
};

nd_relay *nd_relay_new(int wake_fd)
{
    nd_relay *relay = calloc(1, sizeof *relay);
    if (relay == NULL)
        return NULL;
    if (nd_queue_init(&relay->queue, wake_fd) != 0) {
        free(relay);
        return NULL;
    }
    if (nd_files_init(&relay->files) != 0) {
        nd_queue_free(&relay->queue);
        free(relay);
        return NULL;
    }
    relay->files.spare_max = 1;
    pthread_mutex_init(&relay->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&relay->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    return relay;
}

void nd_relay_free(nd_relay *relay)
{
    nd_files_free(&relay->files);
    nd_queue_free(&relay->queue);
    pthread_cond_destroy(&relay->changed);
    pthread_mutex_destroy(&relay->lock);
    free(relay);
}

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* 1 or -errno. ENOENT: the request was withdrawn meanwhile, nobody waits for the reply any more. */
static int reply(int fd, uint64_t unique, int error, void *data, size_t length)
{
    struct fuse_out_header header = {(uint32_t)(sizeof header + length), error, unique};
    struct iovec parts[] = {{&header, sizeof header}, {data, length}};
    ssize_t written;
    do
        written = writev(fd, parts, length > 0 ? 2 : 1);
    while (written < 0 && errno == EINTR);
    return written >= 0 || errno == ENOENT ? 1 : -errno;
}

static void queue_touched(void *context, uint32_t source, uint32_t chunk)
{
    nd_relay *relay = context;
    const uint32_t body[] = {source, chunk};
    /* Without memory it is lost: a hint, not a fact that anything rests on. */
    nd_queue_put(&relay->queue, ND_MESSAGE_TOUCHED, 0, body, sizeof body);
}

/* As nd_relay_answer. */
static int answer(nd_relay *relay, int fd, const nd_request *request,
                  void (*before_blocking)(void *))
{
    uint64_t arrived_us = now_us();
    struct nd_read read;
    if (!nd_read_begin(&relay->files, request, &read))
        return 0;
    int done = 0;
    if (nd_read_fetch(&read, before_blocking, relay)) {
        nd_read_count(&read, now_us() - arrived_us);
        done = reply(fd, request->unique, 0, read.room, read.end - read.offset);
        nd_read_touch(&read, queue_touched, relay);
    }
    nd_read_end(&read);
    return done;
}

static void *run(void *argument);

/* With the lock held. The caller's signals are blocked in the new thread but for ours, so that Python's
 * handlers run where Python expects them. */
static int start_worker(nd_relay *relay)
{
    struct worker *worker = &relay->workers[relay->started];
    *worker = (struct worker){.relay = relay,
                              .device = (uint16_t)(relay->started % relay->device_count)};
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, STOP_SIGNAL);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    /* Counted as waiting from here on, not when it gets there: two that are about to block would else
     * start two. */
    __atomic_fetch_add(&relay->waiting, 1, __ATOMIC_SEQ_CST);
    int error = pthread_create(&worker->thread, &attributes, run, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (error != 0) {
        __atomic_fetch_sub(&relay->waiting, 1, __ATOMIC_SEQ_CST);
        return -error;
    }
    relay->started++;
    relay->running++;
    return 0;
}

/* A thread may wait for the disk only while another one waits at the device, or requests that need no disk
 * wait as well. The last one to leave the device comes here, as every other that is about to block, and sees
 * that nobody is left. At threads_max, or without memory, it blocks all the same. */
static void keep_one_waiting(void *context)
{
    nd_relay *relay = context;
    if (__atomic_load_n(&relay->waiting, __ATOMIC_SEQ_CST) > 0)
        return;
    pthread_mutex_lock(&relay->lock);
    if (__atomic_load_n(&relay->waiting, __ATOMIC_SEQ_CST) == 0 && relay->started < relay->threads_max &&
        !__atomic_load_n(&relay->is_stopping, __ATOMIC_RELAXED))
        start_worker(relay);
    pthread_mutex_unlock(&relay->lock);
}

static void take_request(struct worker *worker, const uint8_t *bytes, size_t length)
{
    nd_relay *relay = worker->relay;
    int fd = relay->devices[worker->device];
    nd_request request;
    switch (nd_request_parse(bytes, length, &request)) {
    case ND_REQUEST_HEADLESS:
        __atomic_fetch_add(&relay->dropped, 1, __ATOMIC_RELAXED);
        return;
    case ND_REQUEST_FORGET:
        return;
    case ND_REQUEST_READ:
        /* A reply that could not be written: Python tries again and says what is wrong. */
        if (answer(relay, fd, &request, keep_one_waiting) == 1)
            return;
        break;
    case ND_REQUEST_OTHER:
        break;
    }
    if (nd_queue_put(&relay->queue, ND_MESSAGE_REQUEST, worker->device, bytes, length) != 0)
        reply(fd, request.unique, -ENOMEM, NULL, 0); /* or who asked would wait for ever */
}

/* True: read again. */
static bool survives(struct worker *worker, int error)
{
    nd_relay *relay = worker->relay;
    if (error == EINTR || error == ENOENT) /* ENOENT: a request was withdrawn while it was read */
        return true;
    if (error == EAGAIN) { /* somebody who shares the descriptor has set O_NONBLOCK again */
        struct pollfd device = {.fd = relay->devices[worker->device], .events = POLLIN};
        poll(&device, 1, -1);
        return true;
    }
    if (!__atomic_exchange_n(&relay->is_ended, true, __ATOMIC_RELAXED)) {
        int32_t body = error;
        nd_queue_put(&relay->queue, ND_MESSAGE_ENDED, worker->device, &body, sizeof body);
    }
    return false;
}

static void *run(void *argument)
{
    struct worker *worker = argument;
    nd_relay *relay = worker->relay;
    int fd = relay->devices[worker->device];
    uint8_t request[ND_REQUEST_BYTES_MAX];
    bool goes_on = true;
    while (goes_on && !__atomic_load_n(&relay->is_stopping, __ATOMIC_RELAXED)) {
        ssize_t length = read(fd, request, sizeof request);
        int error = length < 0 ? errno : ECONNABORTED; /* 0: the other end of a socket was closed */
        if (length > 0) {
            __atomic_fetch_sub(&relay->waiting, 1, __ATOMIC_SEQ_CST);
            take_request(worker, request, (size_t)length);
            __atomic_fetch_add(&relay->waiting, 1, __ATOMIC_SEQ_CST);
        } else {
            goes_on = survives(worker, error);
        }
    }
    pthread_mutex_lock(&relay->lock);
    __atomic_fetch_sub(&relay->waiting, 1, __ATOMIC_SEQ_CST);
    worker->has_ended = true;
    relay->running--;
    pthread_cond_signal(&relay->changed);
    pthread_mutex_unlock(&relay->lock);
    return NULL;
}

static void interrupt_read(int signal)
{
    (void)signal; /* a blocking call returns EINTR; that is all it is for */
}

int nd_relay_start(nd_relay *relay, const int *devices, size_t device_count, unsigned threads,
                   unsigned threads_max)
{
    if (device_count == 0 || device_count > ND_RELAY_THREADS_MAX || threads == 0 ||
        threads > threads_max || threads_max > ND_RELAY_THREADS_MAX)
        return -EINVAL;
    struct sigaction action = {.sa_handler = interrupt_read}; /* no SA_RESTART */
    if (sigaction(STOP_SIGNAL, &action, NULL) < 0)
        return -errno;
    pthread_mutex_lock(&relay->lock);
    int error = relay->started > 0 ? -EBUSY : 0;
    for (size_t i = 0; i < device_count && !error; i++) {
        int flags = fcntl(devices[i], F_GETFL);
        if (flags < 0 || (flags & O_NONBLOCK && fcntl(devices[i], F_SETFL, flags & ~O_NONBLOCK) < 0))
            error = -errno;
        relay->devices[i] = devices[i];
    }
    if (!error) {
        relay->device_count = device_count;
        relay->threads_max = threads_max;
        relay->is_stopping = relay->is_ended = false;
        relay->waiting = 0;
        pthread_mutex_lock(&relay->files.lock);
        relay->files.spare_max = threads;
        pthread_mutex_unlock(&relay->files.lock);
        while (relay->started < threads && !error)
            error = start_worker(relay);
    }
    bool is_partly_started = error && error != -EBUSY && relay->started > 0;
    pthread_mutex_unlock(&relay->lock);
    if (is_partly_started)
        nd_relay_stop(relay, 10000);
    return error;
}

int nd_relay_stop(nd_relay *relay, unsigned timeout_ms)
{
    uint64_t deadline_us = now_us() + (uint64_t)timeout_ms * 1000;
    pthread_mutex_lock(&relay->lock);
    __atomic_store_n(&relay->is_stopping, true, __ATOMIC_RELAXED);
    while (relay->running > 0) {
        /* Again and again: a signal that comes between the look at is_stopping and the read wakes nobody. */
        for (unsigned i = 0; i < relay->started; i++)
            if (!relay->workers[i].has_ended)
                pthread_kill(relay->workers[i].thread, STOP_SIGNAL);
        if (now_us() >= deadline_us) {
            pthread_mutex_unlock(&relay->lock);
            return -ETIMEDOUT;
        }
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += STOP_AGAIN_NS;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&relay->changed, &relay->lock, &until);
    }
    unsigned ended = relay->started;
    pthread_mutex_unlock(&relay->lock);
    for (unsigned i = 0; i < ended; i++) /* no thread is left that could start another */
        pthread_join(relay->workers[i].thread, NULL);
    relay->started = 0;
    return 0;
}

int nd_relay_add_source(nd_relay *relay, int fd, const uint8_t *bits, size_t bits_length,
                        uint64_t chunk_count, uint8_t *watch, uint64_t *hits)
{
    return nd_files_add_source(&relay->files, fd, bits, bits_length, chunk_count, watch, hits);
}

int nd_relay_drop_source(nd_relay *relay, unsigned source)
{
    return nd_files_drop_source(&relay->files, source);
}

int nd_relay_add_file(nd_relay *relay, uint64_t nodeid, uint64_t size, const nd_segment *segments,
                      size_t count, int zero_gaps, nd_read_counts *counts)
{
    return nd_files_add_segments(&relay->files, nodeid, size, segments, count, zero_gaps != 0, counts);
}

int nd_relay_add_flat(nd_relay *relay, uint64_t nodeid, uint64_t size, unsigned source,
                      const uint32_t *blocks, size_t count, nd_read_counts *counts)
{
    return nd_files_add_flat(&relay->files, nodeid, size, source, blocks, count, counts);
}

int nd_relay_drop_file(nd_relay *relay, uint64_t nodeid)
{
    return nd_files_drop(&relay->files, nodeid);
}

ssize_t nd_relay_take(nd_relay *relay, uint8_t *room, size_t length)
{
    return nd_queue_take(&relay->queue, room, length);
}

int nd_relay_answer(nd_relay *relay, int device_fd, const uint8_t *request, size_t length)
{
    nd_request parsed;
    if (nd_request_parse(request, length, &parsed) != ND_REQUEST_READ)
        return 0;
    return answer(relay, device_fd, &parsed, NULL);
}

uint64_t nd_relay_dropped(const nd_relay *relay)
{
    return __atomic_load_n(&relay->dropped, __ATOMIC_RELAXED);
}
