/* Preloaded in User Mode Linux guests, whose kernel has no persistent keyrings: keyctl(KEYCTL_GET_PERSISTENT)
 * answers the user keyring instead. Works for programs that call libc's syscall(). */
#include <errno.h>
#include <linux/keyctl.h>
#include <stdarg.h>
#include <sys/syscall.h>

static long raw(long n, long a, long b, long c, long d, long e, long f)
{
	long r;
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	__asm__ volatile("syscall"
			 : "=a"(r)
			 : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return r;
}

long syscall(long n, ...)
{
	long a[6], r;
	va_list list;
	va_start(list, n);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	if (n == SYS_keyctl && a[0] == KEYCTL_GET_PERSISTENT) {
		a[0] = KEYCTL_GET_KEYRING_ID;
		a[1] = KEY_SPEC_USER_KEYRING;
		a[2] = 1;
	}
	r = raw(n, a[0], a[1], a[2], a[3], a[4], a[5]);
	if (r < 0 && r > -4096) {
		errno = (int)-r;
		return -1;
	}
	return r;
}
