-- What became of many admitted requests on their way into the log.
--
-- ARGV: prefix, life of a marker (s), then 8 per request: 'D' delivered, 'U' unknown or 'N' not sent, user, sku, quantity, minute,
--       marker name ('' = no key), id and fingerprint, ticket.
-- Markers are as in admit.lua.
local FIRST, WIDTH = 3, 8
local prefix = ARGV[1]

local function give_back(user, sku, quantity, minute)
  local key = prefix .. 'q:' .. sku .. ':' .. minute
  local units = tonumber(redis.call('HGET', key, user) or '0')
  if units > quantity then
    redis.call('HSET', key, user, units - quantity)
  elseif units > 0 then
    redis.call('HDEL', key, user)
  end
end

-- All markers in one read; a later request of the same call sees what an earlier one wrote.
local keys, markers = {}, {}
for at = FIRST, #ARGV, WIDTH do
  local name = ARGV[at + 5]
  if name ~= '' and markers[name] == nil then
    markers[name] = false
    keys[#keys + 1] = prefix .. 'k:' .. name
  end
end
if #keys > 0 then
  local start = #prefix + 3
  for i, marker in ipairs(redis.call('MGET', unpack(keys))) do markers[string.sub(keys[i], start)] = marker end
end
local function mark(name, marker)
  markers[name] = marker
  redis.call('SET', prefix .. 'k:' .. name, marker, 'EX', ARGV[2])
end

for at = FIRST, #ARGV, WIDTH do
  local name, id_and_fingerprint = ARGV[at + 5], ARGV[at + 6]
  local marker = markers[name]
  local state = marker and string.sub(marker, 2, 49) == id_and_fingerprint and string.sub(marker, 1, 1)
  if ARGV[at] == 'D' then
    -- Another request's marker stays: the first to use a key owns it.
    if not marker or state == 'P' or state == 'R' then mark(name, 'K' .. id_and_fingerprint .. ARGV[at + 7]) end
  elseif ARGV[at] == 'U' then
    -- As if tried again: nothing that is said of one try says anything about the key.
    if not marker then mark(name, 'R' .. id_and_fingerprint .. ARGV[at + 4]) end
  elseif state ~= 'K' and state ~= 'R' then
    -- Known by another try = these units are in the log, and the writer settles them. Tried again = they may be, and the key with them.
    if state == 'P' then
      markers[name] = false
      redis.call('DEL', prefix .. 'k:' .. name)
    end
    give_back(ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3]), ARGV[at + 4])
  end
end
return 'OK'
