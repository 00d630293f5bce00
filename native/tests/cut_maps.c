#include "check.h"
#include "cut_maps.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 3 };

static volatile uint8_t *mapped(int *file)
{
    char name[] = "/tmp/nydusd-cut-XXXXXX";
    *file = mkstemp(name);
    unlink(name);
    if (*file < 0 || ftruncate(*file, PAGES * PAGE))
        abort();
    uint8_t *bytes = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, *file, 0);
    if (bytes == MAP_FAILED)
        abort();
    memset(bytes, 'x', PAGES * PAGE);
    return bytes;
}

static void test_pages_that_are_gone_are_zeros(void)
{
    int file, event = eventfd(0, EFD_NONBLOCK);
    uint64_t lost = 0;
    volatile uint8_t *bytes = mapped(&file);

    CHECK(nd_survive_cut_maps(event) == 0);
    CHECK(ftruncate(file, PAGE) == 0);
    CHECK(bytes[0] == 'x');
    CHECK(bytes[PAGE + 5] == 0);
    bytes[2 * PAGE] = 'y'; /* written without being read before */
    CHECK(bytes[2 * PAGE] == 'y' && bytes[2 * PAGE + 1] == 0);
    CHECK(bytes[0] == 'x');
    CHECK(read(event, &lost, sizeof lost) == sizeof lost && lost == 2);
    CHECK(lseek(file, 0, SEEK_END) == PAGE);
    munmap((void *)bytes, PAGES * PAGE);
    close(file);
    close(event);
    CHECK(nd_survive_cut_maps(-1) == 0);
    signal(SIGBUS, SIG_DFL);
}

static void test_a_signal_that_somebody_sends_kills(void)
{
    int status = 0;
    pid_t child = fork();

    if (child == 0) {
        nd_survive_cut_maps(-1);
        kill(getpid(), SIGBUS);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
}

void test_cut_maps(void)
{
    test_pages_that_are_gone_are_zeros();
    test_a_signal_that_somebody_sends_kills();
}
