/* api-gateway: REST, WebSocket and SSE in front of the suite. */
#include "gateway.h"

int main(int argc, char **argv)
{
    return service_main(argc, argv, &gateway_description);
}
