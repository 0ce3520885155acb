# Compilers, warnings, hardening and the third-party libraries.
ifeq ($(origin CC),default)
CC := gcc
endif
PKGS := libprotobuf-c libmicrohttpd libpq hiredis libcurl libxml-2.0 yaml-0.1 jansson \
        libsodium libisal libdeflate libzstd libssl libcrypto libssh libvirt zlib
# Foreign headers as system headers: their warnings are not ours. Asked for once, at first use:
# `make demo` on a fresh machine installs these packages before it compiles.
PKG_CFLAGS = $(eval PKG_CFLAGS := $(patsubst -I%,-isystem %,$(shell pkg-config --cflags $(PKGS))))$(PKG_CFLAGS)
PKG_LIBS = $(eval PKG_LIBS := $(shell pkg-config --libs $(PKGS)) -lnng -lwslay -lpthread -lm)$(PKG_LIBS)

WARN := -Wall -Wextra -Wshadow -Wconversion -Wformat=2 -Wstrict-prototypes -Wmissing-prototypes \
        -Wpointer-arith -Wcast-qual -Wwrite-strings -Wvla -Wundef -Wswitch-enum -Wnull-dereference \
        -Wimplicit-fallthrough -Werror
ifneq ($(findstring gcc,$(CC)),)
WARN += -Wformat-signedness -Wduplicated-cond -Wduplicated-branches -Wlogical-op -Walloca
endif
HARD := -fstack-protector-strong -fstack-clash-protection -fPIE -fno-common
ifeq ($(shell uname -m),x86_64)
HARD += -fcf-protection
endif
LINK := -pie -Wl,-z,relro,-z,now -Wl,--as-needed
ifeq ($(VARIANT),asan)
OPT := -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
LINK += -fsanitize=address,undefined
else ifeq ($(VARIANT),fuzz)
OPT := -O1 -fno-omit-frame-pointer -fsanitize=fuzzer-no-link,address,undefined \
       -fno-sanitize-recover=all
LINK += -fsanitize=address,undefined
else ifeq ($(VARIANT),tsan)
OPT := -O1 -fno-omit-frame-pointer -fsanitize=thread
LINK += -fsanitize=thread
else ifeq ($(VARIANT),debug)
OPT := -O0
else
OPT := -O2 -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3 -ftrivial-auto-var-init=zero
endif
CFLAGS_ALL = -std=c11 -D_GNU_SOURCE -I. -I$(B)/gen -MMD -MP -g $(OPT) $(HARD) $(PKG_CFLAGS) $(CFLAGS)
