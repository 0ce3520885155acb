// ovf-reader: reads a descriptor with govmomi's OVF types (Debian's govmomi package), as an importer
// of VMware's own tools would, follows its references, and prints what it understood as JSON.
//
//	ovf-reader web-03.ovf
//
// Exit status 1 with the reason on stderr when it does not read, or when a disk, a file, a parent or
// a network that it names is not there.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmware/govmomi/ovf"
)

type facts struct {
	Name     string   `json:"name"`
	CPUs     uint     `json:"cpus"`
	MemoryMB uint     `json:"memory_mb"`
	Files    []string `json:"files"`
	Disks    []string `json:"disks"`
	Networks []string `json:"networks"`
}

const (
	typeCPU    = 3
	typeMemory = 4
	typeNIC    = 10
	typeDisk   = 17
)

func fail(format string, args ...interface{}) {
	fmt.Fprintf(os.Stderr, "ovf-reader: "+format+"\n", args...)
	os.Exit(1)
}

// Files by id; each must stand next to the descriptor with the size that it gives.
func files(envelope *ovf.Envelope, dir string, out *facts) map[string]bool {
	known := map[string]bool{}
	for _, file := range envelope.References {
		info, err := os.Stat(filepath.Join(dir, file.Href))
		if err != nil {
			fail("file %s: %v", file.ID, err)
		}
		if uint(info.Size()) != file.Size {
			fail("file %s has %d bytes, not %d", file.Href, info.Size(), file.Size)
		}
		known[file.ID] = true
		out.Files = append(out.Files, file.Href)
	}
	return known
}

func disks(envelope *ovf.Envelope, known map[string]bool, out *facts) map[string]bool {
	ids := map[string]bool{}
	if envelope.Disk == nil {
		fail("no DiskSection")
	}
	for _, disk := range envelope.Disk.Disks {
		if disk.FileRef == nil || !known[*disk.FileRef] {
			fail("disk %s references no file", disk.DiskID)
		}
		ids["ovf:/disk/"+disk.DiskID] = true
		out.Disks = append(out.Disks, disk.DiskID+" "+disk.Capacity)
	}
	return ids
}

func networks(envelope *ovf.Envelope, out *facts) map[string]bool {
	names := map[string]bool{}
	if envelope.Network == nil {
		return names
	}
	for _, network := range envelope.Network.Networks {
		names[network.Name] = true
		out.Networks = append(out.Networks, network.Name)
	}
	return names
}

func quantity(item ovf.ResourceAllocationSettingData) uint {
	if item.VirtualQuantity == nil {
		fail("item %s has no quantity", item.ElementName)
	}
	return *item.VirtualQuantity
}

func hardware(section ovf.VirtualHardwareSection, disk, network map[string]bool, out *facts) {
	ids := map[string]bool{}
	used := 0
	for _, item := range section.Item {
		if ids[item.InstanceID] {
			fail("instance %s twice", item.InstanceID)
		}
		ids[item.InstanceID] = true
	}
	for _, item := range section.Item {
		if item.ResourceType == nil {
			fail("item %s has no type", item.ElementName)
		}
		if item.Parent != nil && !ids[*item.Parent] {
			fail("item %s has no parent %s", item.ElementName, *item.Parent)
		}
		switch *item.ResourceType {
		case typeCPU:
			out.CPUs = quantity(item)
		case typeMemory:
			out.MemoryMB = quantity(item)
		case typeNIC:
			if len(item.Connection) != 1 || !network[item.Connection[0]] {
				fail("NIC %s is connected to nothing", item.ElementName)
			}
		case typeDisk:
			used++
			if len(item.HostResource) != 1 || !disk[item.HostResource[0]] {
				fail("disk item %s has no disk behind it", item.ElementName)
			}
		}
	}
	if used != len(disk) {
		fail("%d disk items for %d disks", used, len(disk))
	}
}

func main() {
	if len(os.Args) != 2 || strings.HasPrefix(os.Args[1], "-") {
		fail("usage: ovf-reader FILE.ovf")
	}
	input, err := os.Open(os.Args[1])
	if err != nil {
		fail("%v", err)
	}
	envelope, err := ovf.Unmarshal(input)
	if err != nil {
		fail("%v", err)
	}
	if envelope.VirtualSystem == nil || len(envelope.VirtualSystem.VirtualHardware) != 1 {
		fail("not one VirtualSystem with hardware")
	}
	out := facts{}
	if envelope.VirtualSystem.Name != nil {
		out.Name = *envelope.VirtualSystem.Name
	}
	known := files(envelope, filepath.Dir(os.Args[1]), &out)
	ids := disks(envelope, known, &out)
	names := networks(envelope, &out)
	hardware(envelope.VirtualSystem.VirtualHardware[0], ids, names, &out)
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		fail("%v", err)
	}
}
