/** Files in one ZIP, as they are: PNG is compressed already. */

const CRC = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});
export async function zip(files) {
  const parts = [], directory = [], taken = new Set();
  let offset = 0, length = 0;
  for (const { name: wanted, blob } of files) {
    let name = wanted;
    for (let number = 2; taken.has(name); number++) name = wanted.replace(/_mask\.png$/, `_${number}_mask.png`);
    taken.add(name);
    const bytes = new Uint8Array(await blob.arrayBuffer()), path = new TextEncoder().encode(name);
    let crc = 0xffffffff;
    for (const byte of bytes) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
    const head = new DataView(new ArrayBuffer(26)); // what both records say: version, UTF-8 names, stored, 1980
    [20, 0x0800, 0, 0, 33].forEach((value, index) => head.setUint16(2 * index, value, true));
    [(crc ^ 0xffffffff) >>> 0, bytes.length, bytes.length].forEach((value, index) => head.setUint32(10 + 4 * index, value, true));
    head.setUint16(22, path.length, true);
    const rest = new DataView(new ArrayBuffer(14));
    rest.setUint32(10, offset, true);
    parts.push("PK\x03\x04", head, path, bytes);
    directory.push("PK\x01\x02\x14\x00", head, rest, path);
    offset += 30 + path.length + bytes.length;
    length += 46 + path.length;
  }
  const end = new DataView(new ArrayBuffer(18));
  for (const at of [4, 6]) end.setUint16(at, files.length, true);
  end.setUint32(8, length, true);
  end.setUint32(12, offset, true);
  return new Blob([...parts, ...directory, "PK\x05\x06", end], { type: "application/zip" });
}
