#!/usr/bin/env bash
# Builds the demo guest: mkguest.sh DIR makes DIR/disk.raw, a disk of 512 MiB that boots under BIOS
# and UEFI, from Debian packages that are unpacked, not installed. DIR/data holds the files that
# its second partition (ext4, label DEMODATA) carries: hello.txt, random.bin, SHA256SUMS.
# The guest checks them at boot, prints DEMO-GUEST-UP and DEMO-GUEST-DATA-OK on its serial console
# and powers off. No mount, no loop device, no root. amd64 only. What is there is not built again.
set -eu
umask 022
PATH=$PATH:/usr/sbin:/sbin
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../local/lib.sh"

dir=${1:?directory}
[ ! -s "$dir/disk.raw" ] || exit 0
[ "$(dpkg --print-architecture)" = amd64 ] || die "the demo guest is built for amd64 only"
mkdir -p "$dir"
work=$(cd "$dir" && pwd)/work
rm -rf "$work"
mkdir -p "$work"/{debs,x} "$work"/ir/{bin,m,dev,proc,sys,mnt} "$work/data/etc"
cd "$work"

kernel=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '$1=="Depends:"{print $2;exit}')
if [ -z "$kernel" ]; then
    as_root apt-get -qq update
    kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '$1=="Depends:"{print $2;exit}')
fi
download() {
    (cd debs && apt-get -qq download "$kernel" busybox-static syslinux syslinux-common \
        systemd-boot-efi 2>/dev/null)
}
# old package lists name versions that are gone
download || { as_root apt-get -qq update && download; } || die "the guest's packages cannot be fetched"
for deb in debs/*.deb; do dpkg -x "$deb" x; done

# ---- initramfs: busybox, drivers in loading order (ring before virtio), one script
cp x/bin/busybox ir/bin/
drivers=x/lib/modules/${kernel#linux-image-}/kernel/drivers
n=10
for m in virtio/virtio_ring virtio/virtio virtio/virtio_pci_legacy_dev virtio/virtio_pci_modern_dev \
    virtio/virtio_pci block/virtio_blk scsi/scsi_common scsi/scsi_mod scsi/sd_mod scsi/virtio_scsi \
    scsi/vmw_pvscsi ata/libata ata/ata_piix; do
    cp "$drivers/$m.ko" "ir/m/$n.ko"
    n=$((n + 1))
done
cat >ir/init <<'I'
#!/bin/busybox sh
b=/bin/busybox; $b mount -t devtmpfs dev /dev; $b mount -t proc proc /proc; $b mount -t sysfs sys /sys
for m in /m/*.ko; do $b insmod $m 2>/dev/null; done
for i in 1 2 3 4 5 6 7 8 9 10; do D=$($b findfs LABEL=DEMODATA 2>/dev/null) && break; $b usleep 200000; done
F=bios; [ -d /sys/firmware/efi ] && F=uefi
echo "DEMO-GUEST-UP firmware=$F disk=$D"
$b mount -o ro -t ext4 "$D" /mnt && cd /mnt && $b sha256sum -c SHA256SUMS && echo "DEMO-GUEST-DATA-OK $($b cat hello.txt)"
$b poweroff -f
I
chmod 755 ir/init
(cd ir && find . | LC_ALL=C sort | ../x/bin/busybox cpio -o -H newc 2>/dev/null | gzip -9n) >initrd.gz

# ---- the data to recognise after the journey
echo "hello from the demo guest" >data/hello.txt
echo demo-guest >data/etc/hostname
head -c 32M /dev/urandom >data/random.bin
(cd data && sha256sum hello.txt etc/hostname random.bin >SHA256SUMS)

# ---- GPT: 64 MiB FAT (EFI system and legacy boot partition in one), the rest ext4
truncate -s 512M disk.raw
printf 'label: gpt\nstart=2048, size=131072, type=uefi, attrs=LegacyBIOSBootable\nstart=133120, size=913408, type=linux\n' |
    sfdisk -q disk.raw
export MTOOLS_SKIP_CHECK=1
boot=disk.raw@@1M
mformat -i $boot -T 131072 -h 64 -s 32 -c 4 -H 2048 -v DEMOESP :: # -H: first sector of the partition
mmd -i $boot ::/EFI ::/EFI/BOOT ::/loader ::/loader/entries
mcopy -i $boot x/boot/vmlinuz-* ::/vmlinuz
mcopy -i $boot initrd.gz ::/
mcopy -i $boot x/usr/lib/systemd/boot/efi/systemd-bootx64.efi ::/EFI/BOOT/BOOTX64.EFI
printf 'timeout 0\ndefault demo.conf\n' | mcopy -i $boot - ::/loader/loader.conf
printf 'title demo\nlinux /vmlinuz\ninitrd /initrd.gz\noptions console=ttyS0 quiet\n' |
    mcopy -i $boot - ::/loader/entries/demo.conf
printf 'SERIAL 0 115200\nDEFAULT demo\nLABEL demo\n KERNEL /vmlinuz\n INITRD /initrd.gz\n APPEND console=ttyS0 quiet\n' |
    mcopy -i $boot - ::/syslinux.cfg
x/usr/bin/syslinux --offset 1048576 --install disk.raw
dd if=x/usr/lib/syslinux/mbr/gptmbr.bin of=disk.raw bs=440 count=1 conv=notrunc status=none
# larger than the partition = the guest cannot mount it
mkfs.ext4 -q -F -L DEMODATA -d data -E offset=68157440 disk.raw 446m 2>/dev/null

# the disk last: it is the mark that all is there
rm -rf ../data
mv data ..
mv disk.raw ..
cd ..
rm -rf work
