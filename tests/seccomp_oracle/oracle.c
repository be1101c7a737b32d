/* Builds a filter with libseccomp from a plain list of rules, and prints its BPF.
 *
 * stdin, one per line:
 *   native NAME | default ACTION | arch NAME | optimize LEVEL
 *   rule ACTION NAME N (ARG OP A B)*N
 * stderr: "unknown NAME" for each name that libseccomp has not, "ns TIME" for building.
 */
#include <errno.h>
#include <seccomp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what, int rc)
{
	fprintf(stderr, "%s: %s\n", what, strerror(-rc));
	exit(1);
}

int main(void)
{
	char word[64], name[128];
	unsigned long a, b;
	unsigned int number, count, arg, op;
	struct scmp_arg_cmp cmps[6];
	struct timespec before, after;
	char native[64] = "";
	scmp_filter_ctx ctx = NULL;
	int rc;

	clock_gettime(CLOCK_MONOTONIC, &before);
	while (scanf("%63s", word) == 1) {
		if (!strcmp(word, "native") && scanf("%63s", native) == 1) {
			continue;
		} else if (!strcmp(word, "default") && scanf("%u", &number) == 1) {
			ctx = seccomp_init(number);
			if (!ctx)
				fail("seccomp_init", -EINVAL);
			uint32_t token = seccomp_arch_resolve_name(native);
			if (token && token != seccomp_arch_native()) {
				seccomp_arch_remove(ctx, SCMP_ARCH_NATIVE);
				seccomp_arch_add(ctx, token);
			}
		} else if (!strcmp(word, "arch") && scanf("%127s", name) == 1) {
			rc = seccomp_arch_add(ctx, seccomp_arch_resolve_name(name));
			if (rc < 0 && rc != -EEXIST)
				fail(name, rc);
		} else if (!strcmp(word, "optimize") && scanf("%u", &number) == 1) {
			rc = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, number);
			if (rc < 0)
				fail("optimize", rc);
		} else if (!strcmp(word, "rule") && scanf("%u %127s %u", &number, name, &count) == 3) {
			for (unsigned int i = 0; i < count; i++) {
				if (scanf("%u %u %lu %lu", &arg, &op, &a, &b) != 4 || i >= 6)
					fail("rule", -EINVAL);
				cmps[i] = (struct scmp_arg_cmp){ arg, op, a, b };
			}
			int nr = seccomp_syscall_resolve_name(name);
			if (nr == __NR_SCMP_ERROR) {
				fprintf(stderr, "unknown %s\n", name);
				continue;
			}
			rc = seccomp_rule_add_array(ctx, number, nr, count, cmps);
			if (rc < 0)
				fail(name, rc);
		} else {
			fail(word, -EINVAL);
		}
	}
	rc = seccomp_export_bpf(ctx, STDOUT_FILENO);
	if (rc < 0)
		fail("export", rc);
	clock_gettime(CLOCK_MONOTONIC, &after);
	fprintf(stderr, "ns %ld\n", (after.tv_sec - before.tv_sec) * 1000000000L + after.tv_nsec - before.tv_nsec);
	return 0;
}
