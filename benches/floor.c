// The floor: the least that the kernel must do for the bench's plain bundle, and nothing else.
// No JSON, no seccomp, no state on disk. dhow, crun and runc are measured against it.
//
//   floor run v1|v2 ROOTFS CGROUP ARGV...   namespaces, cgroup, mounts, devices, masks, exec, wait, rmdir
//   floor exec v1|v2 PID CGROUP ARGV...     ARGV in the namespaces and cgroup of a container
//   floor measure ARGV...                   ARGV's peak RSS in KiB and processor time in us, on stderr
//
// CGROUP is relative to the hierarchies' mounts below /sys/fs/cgroup. Exit status: ARGV's.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <net/if.h>
#include <sched.h>
#include <stddef.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define LEN(array) (sizeof(array) / sizeof *(array))

static void die(const char *what) {
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    _exit(125);
}

static void check(long result, const char *what) {
    if (result < 0) die(what);
}

// ---- cgroups

static const char *const hierarchies[] = {"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd"};
static int tasks[LEN(hierarchies)];

static void put(const char *dir, const char *file, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    check(fd, path);
    check(write(fd, text, strlen(text)), path);
    close(fd);
}

static void take(const char *cgroup, const char *file) {
    char path[512], text[256];
    snprintf(path, sizeof path, "/sys/fs/cgroup/cpuset/%s/../%s", cgroup, file);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    check(fd, path);
    ssize_t n = read(fd, text, sizeof text - 1);
    check(n, path);
    text[n] = 0;
    close(fd);
    snprintf(path, sizeof path, "/sys/fs/cgroup/cpuset/%s", cgroup);
    put(path, file, text);
}

static void v1_dir(char *path, size_t size, size_t at, const char *cgroup) {
    snprintf(path, size, "/sys/fs/cgroup/%s/%s", hierarchies[at], cgroup);
}

// What every runtime allows besides the config: making nodes, and the usual devices.
static const char *const allowed[] = {"c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm", "c 5:2 rwm", "c 136:* rwm"};

static void v1_open_tasks(const char *cgroup) {
    char path[512];
    for (size_t i = 0; i < LEN(hierarchies); i++) {
        v1_dir(path, sizeof path - 8, i, cgroup);
        strcat(path, "/tasks");
        tasks[i] = open(path, O_WRONLY | O_CLOEXEC);
        check(tasks[i], path);
    }
}

static void v1_make(const char *cgroup) {
    char path[512];
    for (size_t i = 0; i < LEN(hierarchies); i++) {
        v1_dir(path, sizeof path, i, cgroup);
        check(mkdir(path, 0755), path);
    }
    take(cgroup, "cpuset.cpus");
    take(cgroup, "cpuset.mems");
    snprintf(path, sizeof path, "/sys/fs/cgroup/devices/%s", cgroup);
    put(path, "devices.deny", "a");
    for (size_t i = 0; i < LEN(allowed); i++) put(path, "devices.allow", allowed[i]);
    v1_open_tasks(cgroup);
}

// A single-threaded process that moves itself takes no global lock; its parent could not.
static void v1_join(void) {
    for (size_t i = 0; i < LEN(hierarchies); i++) check(write(tasks[i], "0", 1), "tasks");
}

static void v1_remove(const char *cgroup) {
    char path[512];
    for (size_t i = 0; i < LEN(hierarchies); i++) {
        v1_dir(path, sizeof path, i, cgroup);
        check(rmdir(path), path);
    }
}

#define INSN(c, d, s, o, i) ((struct bpf_insn){.code = (c), .dst_reg = (d), .src_reg = (s), .off = (o), .imm = (i)})

// The same rules as `allowed`, as a program: mknod of all, the usual character devices.
static void v2_devices(int dir) {
    static const struct { int major, minor; } usual[] = {{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}, {136, -1}};
    struct bpf_insn p[64];
    int n = 0;
    p[n++] = INSN(BPF_LDX | BPF_MEM | BPF_W, 2, 1, 0, 0); // access << 16 | type
    p[n++] = INSN(BPF_LDX | BPF_MEM | BPF_W, 4, 1, 4, 0); // major
    p[n++] = INSN(BPF_LDX | BPF_MEM | BPF_W, 5, 1, 8, 0); // minor
    p[n++] = INSN(BPF_ALU64 | BPF_MOV | BPF_X, 3, 2, 0, 0);
    p[n++] = INSN(BPF_ALU64 | BPF_RSH | BPF_K, 3, 0, 0, 16);
    p[n++] = INSN(BPF_ALU64 | BPF_AND | BPF_K, 2, 0, 0, 0xffff);
    p[n++] = INSN(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 1);
    p[n++] = INSN(BPF_JMP | BPF_JNE | BPF_K, 3, 0, 1, BPF_DEVCG_ACC_MKNOD);
    p[n++] = INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
    p[n++] = INSN(BPF_JMP | BPF_JEQ | BPF_K, 2, 0, 2, BPF_DEVCG_DEV_CHAR);
    p[n++] = INSN(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 0);
    p[n++] = INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
    for (size_t i = 0; i < LEN(usual); i++) {
        int any = usual[i].minor < 0;
        p[n++] = INSN(BPF_JMP | BPF_JNE | BPF_K, 4, 0, any ? 1 : 2, usual[i].major);
        if (!any) p[n++] = INSN(BPF_JMP | BPF_JNE | BPF_K, 5, 0, 1, usual[i].minor);
        p[n++] = INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
    }
    p[n++] = INSN(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 0);
    p[n++] = INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
    union bpf_attr load = {.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE, .insn_cnt = n, .insns = (uintptr_t)p, .license = (uintptr_t) "Apache-2.0"};
    int prog = syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load);
    check(prog, "load the device program");
    union bpf_attr attach = {.target_fd = dir, .attach_bpf_fd = prog, .attach_type = BPF_CGROUP_DEVICE, .attach_flags = BPF_F_ALLOW_MULTI};
    check(syscall(SYS_bpf, BPF_PROG_ATTACH, &attach, sizeof attach), "attach the device program");
    close(prog);
}

static int v2_open(const char *cgroup) {
    char path[512];
    snprintf(path, sizeof path, "/sys/fs/cgroup/%s", cgroup);
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    check(fd, path);
    return fd;
}

static pid_t spawn(uint64_t flags, int cgroup) {
    struct clone_args args = {.flags = flags, .exit_signal = SIGCHLD};
    if (cgroup >= 0) {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup;
    }
    pid_t pid = syscall(SYS_clone3, &args, sizeof args);
    check(pid, "clone3");
    return pid;
}

// ---- inside

static void mounts(int v2) {
    static const struct { const char *kind, *to; unsigned long flags; const char *data; } list[] = {
        {"proc", "proc", 0, 0},
        {"tmpfs", "dev", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"},
        {"devpts", "dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
        {"tmpfs", "dev/shm", MS_NOSUID | MS_NOEXEC | MS_NODEV, "mode=1777,size=65536k"},
        {"mqueue", "dev/mqueue", MS_NOSUID | MS_NOEXEC | MS_NODEV, 0},
        {"sysfs", "sys", MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RDONLY, 0},
    };
    for (size_t i = 0; i < LEN(list); i++) {
        if (i > 1 && i < 5) check(mkdir(list[i].to, 0755), list[i].to);
        check(mount(list[i].kind, list[i].to, list[i].kind, list[i].flags, list[i].data), list[i].to);
    }
    unsigned long flags = MS_NOSUID | MS_NOEXEC | MS_NODEV;
    if (v2) {
        check(mount("cgroup", "sys/fs/cgroup", "cgroup2", flags | MS_RDONLY, 0), "cgroup2");
        return;
    }
    check(mount("tmpfs", "sys/fs/cgroup", "tmpfs", flags, "mode=755"), "tmpfs of cgroups");
    for (size_t i = 0; i < LEN(hierarchies); i++) {
        char path[64];
        snprintf(path, sizeof path, "sys/fs/cgroup/%s", hierarchies[i]);
        check(mkdir(path, 0755), path);
        const char *data = strcmp(hierarchies[i], "systemd") ? hierarchies[i] : "none,name=systemd";
        check(mount("cgroup", path, "cgroup", flags | MS_RDONLY, data), path);
    }
}

static void devices(void) {
    static const struct { const char *path; int major, minor; } nodes[] = {{"dev/null", 1, 3}, {"dev/zero", 1, 5}, {"dev/full", 1, 7}, {"dev/random", 1, 8}, {"dev/urandom", 1, 9}, {"dev/tty", 5, 0}};
    static const char *const links[][2] = {{"/proc/self/fd", "dev/fd"}, {"/proc/self/fd/0", "dev/stdin"}, {"/proc/self/fd/1", "dev/stdout"}, {"/proc/self/fd/2", "dev/stderr"}, {"pts/ptmx", "dev/ptmx"}, {"/proc/kcore", "dev/core"}};
    umask(0);
    for (size_t i = 0; i < LEN(nodes); i++) check(mknod(nodes[i].path, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)), nodes[i].path);
    for (size_t i = 0; i < LEN(links); i++) check(symlink(links[i][0], links[i][1]), links[i][1]);
    umask(022);
}

static void masks(void) {
    static const char *const masked[] = {"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"};
    static const char *const readonly[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"};
    for (size_t i = 0; i < LEN(readonly); i++) {
        if (mount(readonly[i], readonly[i], 0, MS_BIND | MS_REC, 0) < 0) continue;
        check(mount(0, readonly[i], 0, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, 0), readonly[i]);
    }
    for (size_t i = 0; i < LEN(masked); i++) {
        if (mount("/dev/null", masked[i], 0, MS_BIND, 0) == 0 || errno == ENOENT) continue;
        check(mount("tmpfs", masked[i], "tmpfs", MS_RDONLY, "size=4k,nr_inodes=1"), masked[i]);
    }
}

static void loopback_up(void) {
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    check(fd, "socket");
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    check(ioctl(fd, SIOCSIFFLAGS, &request), "lo");
    close(fd);
}

static void credentials(void) {
    static const int kept[] = {CAP_KILL, CAP_NET_BIND_SERVICE, CAP_AUDIT_WRITE};
    uint64_t keep = 0;
    for (size_t i = 0; i < LEN(kept); i++) keep |= UINT64_C(1) << kept[i];
    for (int cap = 0; cap <= CAP_LAST_CAP; cap++)
        if (!(keep >> cap & 1)) check(prctl(PR_CAPBSET_DROP, cap, 0, 0, 0), "bounding set");
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{keep, keep, 0}, {keep >> 32, keep >> 32, 0}};
    struct rlimit limit = {1024, 1024};
    check(setrlimit(RLIMIT_NOFILE, &limit), "rlimit");
    check(syscall(SYS_capset, &header, data), "capset");
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
}

static void inside(int v2, const char *rootfs, char **argv) {
    if (!v2) v1_join();
    // After the cgroup: it becomes the namespace's root.
    check(unshare(CLONE_NEWCGROUP), "unshare");
    check(mount(0, "/", 0, MS_REC | MS_SLAVE, 0), "propagation");
    check(mount(rootfs, rootfs, 0, MS_BIND | MS_REC, 0), rootfs);
    check(chdir(rootfs), rootfs);
    mounts(v2);
    devices();
    check(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    check(umount2(".", MNT_DETACH), "umount the old root");
    masks();
    check(mount(0, "/", 0, MS_BIND | MS_REMOUNT | MS_RDONLY, 0), "read-only root");
    check(sethostname("dhow", 4), "hostname");
    loopback_up();
    setsid();
    credentials();
    char *environment[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm", 0};
    execve(argv[0], argv, environment);
    die(argv[0]);
}

static int status_of(pid_t pid) {
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR) die("wait");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int run(int v2, const char *rootfs, const char *cgroup, char **argv) {
    char path[512];
    int dir = -1;
    if (v2) {
        snprintf(path, sizeof path, "/sys/fs/cgroup/%s", cgroup);
        check(mkdir(path, 0755), path);
        dir = v2_open(cgroup);
        v2_devices(dir);
    } else {
        v1_make(cgroup);
    }
    pid_t pid = spawn(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS, dir);
    if (pid == 0) inside(v2, rootfs, argv);
    int status = status_of(pid);
    if (v2) check(rmdir(path), path);
    else v1_remove(cgroup);
    return status;
}

static int enter(int v2, pid_t target, const char *cgroup, char **argv) {
    int dir = -1;
    if (v2) dir = v2_open(cgroup);
    else v1_open_tasks(cgroup);
    int pidfd = syscall(SYS_pidfd_open, target, 0);
    check(pidfd, "pidfd_open");
    // Only children are in a joined pid namespace: join, then fork.
    check(setns(pidfd, CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP), "setns");
    pid_t pid = spawn(0, dir);
    if (pid == 0) {
        if (!v2) v1_join();
        setsid();
        credentials();
        char *environment[] = {"PATH=/bin", 0};
        execve(argv[0], argv, environment);
        die(argv[0]);
    }
    return status_of(pid);
}

// Small, because the kernel counts the peak of whoever spawns by vfork as the child's own.
static int measure(char **argv) {
    pid_t pid = vfork();
    check(pid, "vfork");
    if (pid == 0) {
        execv(argv[0], argv);
        _exit(127);
    }
    struct rusage usage;
    int status;
    check(wait4(pid, &status, 0, &usage), "wait4");
    fprintf(stderr, "%ld %ld\n", usage.ru_maxrss, (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000L + usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int argc, char **argv) {
    if (argc > 2 && !strcmp(argv[1], "measure")) return measure(argv + 2);
    if (argc > 5 && !strcmp(argv[1], "run")) return run(!strcmp(argv[2], "v2"), argv[3], argv[4], argv + 5);
    if (argc > 5 && !strcmp(argv[1], "exec")) return enter(!strcmp(argv[2], "v2"), atoi(argv[3]), argv[4], argv + 5);
    fprintf(stderr, "usage: floor run v1|v2 ROOTFS CGROUP ARGV... | exec v1|v2 PID CGROUP ARGV... | measure ARGV...\n");
    return 2;
}
