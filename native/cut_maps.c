#include "cut_maps.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

static int told;
static uintptr_t page;

static void on_bus_error(int number, siginfo_t *info, void *context)
{
    (void)context;
    int saved = errno;

    if (info->si_code == BUS_ADRERR) {
        void *start = (void *)((uintptr_t)info->si_addr & ~(page - 1));
        /* Not executable: code that is gone must not go on as zeros. */
        if (mmap(start, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                 0) == start) {
            uint64_t one = 1;
            if (told >= 0 && write(told, &one, sizeof one) < 0) {
                /* The counter is full, or closed: somebody was told before. */
            }
            errno = saved;
            return;
        }
    }
    /* Broken memory, or a signal that somebody sent: end by it. What faulted faults again. */
    signal(number, SIG_DFL);
    if (info->si_code <= 0)
        raise(number);
    errno = saved;
}

int nd_survive_cut_maps(int tell_fd)
{
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_RESTART};

    told = tell_fd;
    page = (uintptr_t)sysconf(_SC_PAGESIZE);
    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, NULL) ? -errno : 0;
}
