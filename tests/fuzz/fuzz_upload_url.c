/* URLs of upload targets: what is accepted reads the same when it is written. */
#include <string.h>

#include "common/upload_url.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    autofree char *text = xstrndup((const char *)data, size);
    struct error err = ERROR_NONE;
    struct upload_url url;
    struct upload_url again;
    autofree char *written = NULL;

    if (upload_url_parse(text, &url, &err) < 0)
        return 0;
    written = upload_url_text(&url, "");
    if (strlen(written) > UPLOAD_URL_BYTES_MAX)
        return 0; /* a slash longer */
    if (upload_url_parse(written, &again, &err) < 0 || strcmp(url.path, again.path) != 0 ||
        strcmp(url.host, again.host) != 0 || strcmp(url.user, again.user) != 0 ||
        url.port != again.port)
        abort();
    return 0;
}
