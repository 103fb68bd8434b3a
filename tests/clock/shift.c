/* Moves the wall clock of the process that preloads it by the seconds that stand in the file $WALDEN_CLOCK_SHIFT; the file is
   read at each look at the clock, so that a running server's clock can be set. PostgreSQL dates commits by gettimeofday. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int gettimeofday(struct timeval *restrict to, void *restrict zone)
{
    int error = errno;
    long shift = 0;
    char text[32];
    struct timespec now;
    const char *path = getenv("WALDEN_CLOCK_SHIFT");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;

    (void) zone;
    if (file >= 0) {
        ssize_t len = read(file, text, sizeof text - 1);
        if (len > 0) {
            text[len] = 0;
            shift = atol(text);
        }
        close(file);
    }
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
    to->tv_sec = now.tv_sec + shift;
    to->tv_usec = now.tv_nsec / 1000;
    errno = error;
    return 0;
}
