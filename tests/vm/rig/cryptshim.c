// What stratisd 3.9.2 wants of libcryptsetup 2.7 and an older one, as that of Debian 12, has not: so that it can be
// built. It is called where a pool is encrypted, which no test here has it do.
// With -DDECLARE this is what its header lacks. Deliberately absent: doing anything.
#ifdef DECLARE
#include_next <libcryptsetup.h>
#else
#include <errno.h>
struct crypt_device;
#endif

int crypt_set_keyring_to_link(struct crypt_device *device, const char *description, const char *old_description,
			      const char *type, const char *keyring);

#ifndef DECLARE
int crypt_set_keyring_to_link(struct crypt_device *device, const char *description, const char *old_description,
			      const char *type, const char *keyring)
{
	(void)device, (void)description, (void)old_description, (void)type, (void)keyring;
	return -ENOTSUP;
}
#endif
