/* The reader of encrypted files: header and chunks. With the key of the corpus, so that it gets
 * behind the first chunk. */
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "common/crypt_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int count(void *arg, const void *data, size_t size, struct error *err)
{
    (void)data, (void)err;
    *(size_t *)arg += size;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t bytes[CRYPT_KEY_BYTES_MIN] = "the key of the fuzzer's corpus";
    auto_crypt_key *key = crypt_key_new(bytes, sizeof bytes);
    autoclose int fd = memfd_create("fuzz", MFD_CLOEXEC);
    struct error err = ERROR_NONE;
    size_t plain = 0;

    if (fd < 0 || write_all(fd, data, size) < 0 || lseek(fd, 0, SEEK_SET) != 0)
        return 0;
    if (crypt_decrypt_fd(&(struct crypt_file){fd, "input"}, key, NULL, count, &plain, &err) == 0 &&
        plain >= size)
        __builtin_trap(); /* each chunk is longer than what it holds */
    return 0;
}
