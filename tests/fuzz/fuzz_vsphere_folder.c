/* Texts of datastore files. The first byte chooses: 'd' a descriptor, 'r' a Content-Range, 'p' a
 * datastore path that becomes a URL. */
#include <string.h>

#include "services/exporter/providers/vsphere/folder.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void descriptor(const char *text, size_t size)
{
    struct folder_descriptor out = {0};
    struct error err = ERROR_NONE;

    if (folder_descriptor_parse(text, size, &out, &err) == 1 && strchr(out.flat_name, '/') != NULL)
        abort(); /* it stays beside its descriptor */
}

static void range(const char *text)
{
    struct folder_range out = {0};

    if (folder_range_parse(text, &out) &&
        (out.first > out.last || (out.total != 0 && out.last >= out.total)))
        abort();
}

static void path(const char *text)
{
    struct error err = ERROR_NONE;
    autofree char *datastore = NULL, *rest = NULL, *url = NULL, *flat = NULL;

    if (folder_path_split(text, &datastore, &rest, &err) < 0)
        return;
    if (strstr(rest, "/../") != NULL || strncmp(rest, "../", 3) == 0)
        abort();
    flat = folder_flat_path(rest);
    if (folder_url(&(struct folder_place){"https://h:443", rest, datastore}, rest, 2, &url, &err) ==
            0 &&
        strpbrk(url, " \n\"<>") != NULL)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    autofree char *text = NULL;

    if (size == 0)
        return 0;
    text = xstrndup((const char *)data + 1, size - 1);
    if (data[0] == 'd')
        descriptor((const char *)data + 1, size - 1);
    else if (data[0] == 'r')
        range(text);
    else if (data[0] == 'p')
        path(text);
    return 0;
}
