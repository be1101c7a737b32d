/* Which functions do dhow's common commands run? Steps through a command and all that it forks, and
 * appends the addresses that were executed, each once, to a file. `benches/order.sh` makes the
 * linker's list of it. What a container runs is let go at its execve(2). */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define LOW 0x200000UL
#define HIGH 0x1000000UL

/* By its inode: dhow runs itself anew from a mount of its own, and the payload's path is the container's. */
static int is_payload(pid_t pid, const char *program)
{
    char link[64];
    struct stat runs, dhow;
    snprintf(link, sizeof link, "/proc/%d/exe", pid);
    return stat(link, &runs) == 0 && stat(program, &dhow) == 0 && runs.st_ino != dhow.st_ino;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: step FILE PROGRAM [ARGUMENT...]\n");
        return 2;
    }
    unsigned char *seen = calloc(HIGH - LOW, 1);
    FILE *out = fopen(argv[1], "a");
    if (!seen || !out) {
        perror(argv[1]);
        return 1;
    }
    pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        execv(argv[2], argv + 2);
        _exit(127);
    }
    int status;
    waitpid(child, &status, 0);
    ptrace(PTRACE_SETOPTIONS, child, 0,
           PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL);
    ptrace(PTRACE_SINGLESTEP, child, 0, 0);
    for (pid_t pid; (pid = waitpid(-1, &status, __WALL)) > 0;) {
        if (!WIFSTOPPED(status))
            continue;
        if (status >> 16 == PTRACE_EVENT_EXEC && is_payload(pid, argv[2])) {
            ptrace(PTRACE_DETACH, pid, 0, 0);
            continue;
        }
        int signal = WSTOPSIG(status);
        if (signal == SIGTRAP || signal == SIGSTOP) {
            struct user_regs_struct registers;
            signal = 0;
            if (ptrace(PTRACE_GETREGS, pid, 0, &registers) == 0 && registers.rip >= LOW && registers.rip < HIGH &&
                !seen[registers.rip - LOW]) {
                seen[registers.rip - LOW] = 1;
                fprintf(out, "%llx\n", registers.rip);
            }
        }
        ptrace(PTRACE_SINGLESTEP, pid, 0, signal);
    }
    return fclose(out) != 0;
}
