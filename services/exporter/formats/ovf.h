/* The OVF 1.x descriptor of an export: written from the VM's facts and the finished disk files,
 * and read back by the verifier (or from a stranger: everything in it is hostile then). */
#ifndef EXPORTER_OVF_H
#define EXPORTER_OVF_H

#include "services/exporter/engine/vm.h"

#define OVF_BYTES_MAX ((size_t)(4 * MIB)) /* ours have some 10 KiB */
#define OVF_DEPTH_MAX 32
#define OVF_NODES_MAX 100000
#define OVF_FILES_MAX 1000 /* as for OVA members */
#define OVF_NICS_MAX  VM_NICS_MAX

struct ovf_disk {          /* a streamOptimized VMDK that is complete; borrowed */
    const char *file_name; /* base name, as on disk */
    uint64_t file_bytes;
    uint64_t capacity_bytes;
    uint64_t populated_bytes; /* bytes that hold data; 0 = unknown, left out */
    size_t vm_disk_index;     /* into vm->disks */
};

/* The descriptor as UTF-8 text, the same for the same input. Caller frees *out.
 * ERR_INVALID: a file name with directories, an index outside vm->disks, no disk at all. */
MUST_CHECK int ovf_write(const struct vm *vm, const struct ovf_disk *disks, size_t disk_count,
                         char **out, struct error *err);

struct ovf_file_entry {
    char *id;
    char *href;     /* plain base name */
    uint64_t bytes; /* 0 = not given */
};

struct ovf_disk_entry {
    char *id;
    size_t file; /* index into files; SIZE_MAX: an empty disk */
    uint64_t capacity_bytes;
    uint64_t populated_bytes;
    /* Of the hardware item that holds it, in the words of struct vm_disk; "" and 0: none says. */
    const char *controller_type;
    const char *controller_model;
    uint32_t controller_bus;
    uint32_t unit;
};

struct ovf_nic_entry {
    char *mac;         /* lower case, colons; "": the importer makes one */
    char *network;     /* as NetworkSection lists it, or "" */
    const char *model; /* as in struct vm_nic, "" when it is none of those */
};

struct ovf {
    char *name;
    struct ovf_file_entry *files;
    size_t file_count;
    struct ovf_disk_entry *disks;
    size_t disk_count;
    enum vm_firmware firmware; /* UNKNOWN when the descriptor does not say: BIOS by convention */
    bool secure_boot;
    uint32_t cpu_count;
    uint64_t memory_mb;
    char *os_type; /* VMware's guest id (vmw:osType), or "" */
    char *os_name; /* for people, or "" */
    struct ovf_nic_entry *nics;
    size_t nic_count;
};

/* Parses and checks that all references resolve: disks to files, hardware items to disks, parents
 * to items, connections to networks; ids unique; file names plain.
 * ERR_CORRUPT: anything of that fails, or no XML, or a DOCTYPE. ERR_LIMIT: too big or too deep. */
MUST_CHECK int ovf_read(const char *text, size_t size, struct ovf **out, struct error *err);
/* Do all referenced files stand in dir, with the sizes that the descriptor gives? */
MUST_CHECK int ovf_check_files(const struct ovf *ovf, const char *dir, struct error *err);
void ovf_free(struct ovf *ovf); /* NULL-safe */
DEFINE_AUTO(ovf, struct ovf, ovf_free)
#define auto_ovf CLEANUP(ovf_auto) struct ovf

#endif
