/* hyper2kvm-bridge: turns finished exports into images and domains for KVM. */
#include <libxml/parser.h>

#include "bridge.h"

int main(int argc, char **argv)
{
    xmlInitParser(); /* before any thread: libxml2's globals are made here */
    return service_main(argc, argv, &bridge_description);
}
