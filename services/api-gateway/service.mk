BINARIES += api-gateway
api-gateway_DIRS := services/api-gateway
