/* The threads: read a request, answer it or queue it. */
#define _GNU_SOURCE
#include "relay_parts.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define STACK_BYTES (256 * 1024) /* of which a few pages are touched */
#define STOP_SIGNAL (SIGRTMAX - 1)
#define STOP_AGAIN_US 2000
#define GIVE_UP_MS 10000 /* on threads of a start that failed: they have not begun to read a disk */

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

/* 1 or -errno. ENOENT: the request was withdrawn meanwhile, nobody waits for the reply. */
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

/* As nd_relay_answer. */
static int answer(nd_relay *relay, int fd, const nd_request *request, bool may_wait)
{
    uint64_t arrived_us = now_us();
    struct nd_read read;
    if (!nd_read_begin(&relay->files, request, &read))
        return 0;
    int done = 0;
    if (nd_read_fetch(relay, &read, may_wait)) {
        nd_read_count(&read, now_us() - arrived_us);
        done = reply(fd, request->unique, 0, read.room, read.end - read.offset);
        nd_read_touch(relay, &read);
    }
    nd_read_end(&relay->files, &read);
    return done;
}

/* A request for a name or attributes. True: answered, or withdrawn. */
static bool answer_from_tree(nd_relay *relay, int fd, const uint8_t *bytes, size_t length)
{
    struct fuse_in_header header;
    memcpy(&header, bytes, sizeof header);
    unsigned phase;
    const nd_tree *tree = nd_tree_begin(&relay->files, header.nodeid, &phase);
    if (tree == NULL)
        return false;
    uint8_t payload[ND_TREE_REPLY_BYTES_MAX];
    ssize_t size = nd_tree_answer(tree, bytes, length, payload, sizeof payload);
    /* If the reply cannot be written, Python tries again and says what is wrong. */
    bool is_done = size >= 0 && reply(fd, header.unique, 0, payload, (size_t)size) == 1;
    nd_tree_end(&relay->files, phase);
    return is_done;
}

int nd_relay_answer(nd_relay *relay, int device_fd, const uint8_t *request, size_t length)
{
    nd_request parsed;
    if (nd_request_parse(request, length, &parsed) != ND_REQUEST_READ)
        return 0;
    return answer(relay, device_fd, &parsed, true);
}

uint64_t nd_relay_dropped(const nd_relay *relay)
{
    return __atomic_load_n(&relay->dropped, __ATOMIC_RELAXED);
}

static void *run(void *argument);

/* With the lock held. All signals but ours are blocked in the new thread, so that Python's handlers
 * run in Python's threads. */
static int start_worker(nd_relay *relay)
{
    struct nd_worker *worker = &relay->workers[relay->started];
    *worker = (struct nd_worker){.relay = relay,
                                 .device = (uint16_t)(relay->started % relay->device_count)};
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, SIGBUS); /* its own doing: a mapped file that was cut short (cut_maps.h) */
    sigdelset(&all, STOP_SIGNAL);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    /* Counted from now on, not when it gets there: two who are about to block would start two. */
    __atomic_fetch_add(&relay->waiting, 1, __ATOMIC_SEQ_CST);
    int error = pthread_create(&worker->thread, &attributes, run, worker);
    if (error == 0) {
        relay->started++;
        relay->running++;
    } else {
        __atomic_fetch_sub(&relay->waiting, 1, __ATOMIC_SEQ_CST);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return -error;
}

/* A thread waits for the disk only while another one waits at the device, or else requests that need
 * no disk would wait too. Of several that have left the device the last one finds nobody there when
 * it is about to block, and starts another. At threads_max, or without memory, it just blocks. */
void nd_relay_keep_one_waiting(nd_relay *relay)
{
    if (__atomic_load_n(&relay->waiting, __ATOMIC_SEQ_CST) > 0)
        return;
    pthread_mutex_lock(&relay->lock);
    if (__atomic_load_n(&relay->waiting, __ATOMIC_SEQ_CST) == 0 &&
        relay->started < relay->threads_max && !relay->is_stopping)
        start_worker(relay);
    pthread_mutex_unlock(&relay->lock);
}

static void take_request(struct nd_worker *worker, const uint8_t *bytes, size_t length)
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
        /* If the reply cannot be written, Python tries again and says what is wrong. */
        if (answer(relay, fd, &request, false) == 1)
            return;
        break;
    case ND_REQUEST_OTHER:
        if (answer_from_tree(relay, fd, bytes, length))
            return;
        break;
    }
    if (nd_queue_put(&relay->queue, ND_MESSAGE_REQUEST, worker->device, bytes, length) != 0)
        reply(fd, request.unique, -ENOMEM, NULL, 0); /* or who asked would wait for ever */
}

/* What to do when a device gave no request but `error`. True: read again. */
static bool is_passing(struct nd_worker *worker, int error)
{
    nd_relay *relay = worker->relay;
    if (error == EINTR || error == ENOENT) /* ENOENT: the request was withdrawn while it was read */
        return true;
    if (error == EAGAIN) { /* somebody who shares the descriptor has set O_NONBLOCK again */
        struct pollfd device = {.fd = relay->devices[worker->device], .events = POLLIN};
        poll(&device, 1, -1);
        return true;
    }
    if (!__atomic_exchange_n(&relay->has_told, true, __ATOMIC_RELAXED)) {
        int32_t body = error;
        nd_queue_put(&relay->queue, ND_MESSAGE_ENDED, worker->device, &body, sizeof body);
    }
    return false;
}

static void *run(void *argument)
{
    struct nd_worker *worker = argument;
    nd_relay *relay = worker->relay;
    uint8_t request[ND_REQUEST_BYTES_MAX];
    pthread_setname_np(pthread_self(), "relay"); /* for ps and top */
    bool goes_on = true;
    while (goes_on && !__atomic_load_n(&relay->is_stopping, __ATOMIC_RELAXED)) {
        ssize_t length = read(relay->devices[worker->device], request, sizeof request);
        if (length > 0) {
            __atomic_fetch_sub(&relay->waiting, 1, __ATOMIC_SEQ_CST);
            take_request(worker, request, (size_t)length);
            __atomic_fetch_add(&relay->waiting, 1, __ATOMIC_SEQ_CST);
        } else { /* 0: a socket whose other end was closed */
            goes_on = is_passing(worker, length < 0 ? errno : ECONNABORTED);
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

static void interrupt(int signal)
{
    (void)signal; /* the blocking call returns EINTR; that is all it is for */
}

/* With the lock held. */
static int start_all(nd_relay *relay, const int *devices, size_t device_count, unsigned threads,
                     unsigned threads_max)
{
    struct sigaction action = {.sa_handler = interrupt}; /* no SA_RESTART */
    if (sigaction(STOP_SIGNAL, &action, NULL) < 0)
        return -errno;
    for (size_t i = 0; i < device_count; i++) {
        int flags = fcntl(devices[i], F_GETFL);
        if (flags < 0 || fcntl(devices[i], F_SETFL, flags & ~O_NONBLOCK) < 0)
            return -errno;
        relay->devices[i] = devices[i];
    }
    relay->device_count = device_count;
    relay->threads_max = threads_max;
    relay->is_stopping = relay->has_told = false;
    pthread_mutex_lock(&relay->files.lock);
    relay->files.spare_max = threads;
    pthread_mutex_unlock(&relay->files.lock);
    while (relay->started < threads) {
        int error = start_worker(relay);
        if (error)
            return error;
    }
    return 0;
}

int nd_relay_start(nd_relay *relay, const int *devices, size_t device_count, unsigned threads,
                   unsigned threads_max)
{
    if (device_count == 0 || device_count > ND_RELAY_THREADS_MAX || threads == 0 ||
        threads > threads_max || threads_max > ND_RELAY_THREADS_MAX)
        return -EINVAL;
    pthread_mutex_lock(&relay->lock);
    bool is_stopped = relay->started == 0;
    int error = is_stopped ? start_all(relay, devices, device_count, threads, threads_max) : -EBUSY;
    pthread_mutex_unlock(&relay->lock);
    if (is_stopped && error)
        nd_relay_stop(relay, GIVE_UP_MS);
    return error;
}

int nd_relay_stop(nd_relay *relay, unsigned timeout_ms)
{
    uint64_t deadline_us = now_us() + (uint64_t)timeout_ms * 1000;
    pthread_mutex_lock(&relay->lock);
    __atomic_store_n(&relay->is_stopping, true, __ATOMIC_RELAXED);
    while (relay->running > 0) {
        /* Again and again: a signal between a look at is_stopping and the read wakes nobody. */
        for (unsigned i = 0; i < relay->started; i++)
            if (!relay->workers[i].has_ended)
                pthread_kill(relay->workers[i].thread, STOP_SIGNAL);
        uint64_t again_us = now_us();
        if (again_us > deadline_us) {
            pthread_mutex_unlock(&relay->lock);
            return -ETIMEDOUT;
        }
        again_us += STOP_AGAIN_US;
        struct timespec again = {(time_t)(again_us / 1000000), (long)(again_us % 1000000) * 1000};
        pthread_cond_timedwait(&relay->changed, &relay->lock, &again);
    }
    unsigned ended = relay->started; /* no thread is left that could start another */
    relay->started = 0;
    pthread_mutex_unlock(&relay->lock);
    for (unsigned i = 0; i < ended; i++)
        pthread_join(relay->workers[i].thread, NULL);
    return 0;
}
