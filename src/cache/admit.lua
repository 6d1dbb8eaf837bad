-- Admission of many requests in one call, as if each were asked after the one before it.
--
-- ARGV: prefix, '1' if keyed requests may be in the log that this instance was not told of, life of provisional units (s), life of a marker (s),
--       minutes that provisional units are summed over,
--       then 8 per request: user, sku, quantity, limit, minute, '1' if refused already, marker name ('' = no key), id and fingerprint.
-- A marker is: state ('P' pending, 'R' pending and tried again, 'K' known), 32 digits of id, 16 of fingerprint, then the ticket of a
-- known one if it was told, or the minute that the units of a pending one were taken from.
-- Returns: age of this instance's memory (ms), then one answer per request:
--       0 ok, 2 key reused, 3 absent, or a text: 'L', decided units, a space and undecided ones = over the limit, 'P' and minute = pending,
--       id and ticket = replay.
--
-- Reads come first, one per hash for all users together, and writes last, again one per hash: 250 requests of one SKU are a handful of
-- commands. In between everything is kept in tables, so that a later request of the same call sees what an earlier one did.
local FIRST, WIDTH = 6, 8
local prefix, minutes = ARGV[1], tonumber(ARGV[5])
local count = (#ARGV - FIRST + 1) / WIDTH

local function memory_age()
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local birth = ARGV[2] == '0' and redis.call('GET', prefix .. 'birth')
  if not birth then
    birth = now
    redis.call('SET', prefix .. 'birth', string.format('%.0f', now))
  end
  return math.max(0, now - tonumber(birth))
end

local function queued_key(sku, minute)
  return prefix .. 'q:' .. sku .. ':' .. minute
end

-- Which markers and which fields of which hashes are needed.
local names, markers = {}, {}
local skus = {}
for i = 0, count - 1 do
  local at = FIRST + i * WIDTH
  local name = ARGV[at + 6]
  if name ~= '' and markers[name] == nil then
    markers[name] = false
    names[#names + 1] = name
  end
  if ARGV[at + 5] == '0' then
    local user, sku, minute = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 4])
    local of = skus[sku]
    if not of then
      of = { users = {}, is_listed = {}, decided = {}, queued = {}, touched = {} }
      skus[sku] = of
    end
    if not of.is_listed[user] then
      of.is_listed[user] = true
      of.users[#of.users + 1] = user
    end
    for m = minute - minutes + 1, minute do
      of.queued[m] = of.queued[m] or {}
    end
  end
end

-- Reads.
if #names > 0 then
  local keys = {}
  for i, name in ipairs(names) do keys[i] = prefix .. 'k:' .. name end
  for i, marker in ipairs(redis.call('MGET', unpack(keys))) do markers[names[i]] = marker end
end
local function read_units(key, users, into)
  for i, units in ipairs(redis.call('HMGET', key, unpack(users))) do
    into[users[i]] = units and tonumber(units) or 0
  end
end
for sku, of in pairs(skus) do
  read_units(prefix .. 'u:' .. sku, of.users, of.decided)
  for minute, queued in pairs(of.queued) do read_units(queued_key(sku, minute), of.users, queued) end
end

-- A broken hint must not make the answers of a whole call unreadable.
local function shown(units)
  return math.min(math.max(units, 0), 999999999)
end

-- One request after the other.
local function take_units(user, sku, quantity, limit, minute)
  local of = skus[sku]
  local decided, undecided = of.decided[user], 0
  for m = minute - minutes + 1, minute do undecided = undecided + of.queued[m][user] end
  if decided + undecided + quantity > limit then return string.format('L%d %d', shown(decided), shown(undecided)) end
  of.queued[minute][user] = of.queued[minute][user] + quantity
  of.touched[minute] = of.touched[minute] or {}
  of.touched[minute][user] = of.queued[minute][user]
  return nil
end

local answers = { memory_age() }
for i = 0, count - 1 do
  local at = FIRST + i * WIDTH
  local name, id_and_fingerprint = ARGV[at + 6], ARGV[at + 7]
  local marker = markers[name]
  local answer
  if marker then
    if string.sub(marker, 34, 49) ~= string.sub(id_and_fingerprint, 33, 48) then
      answer = 2
    elseif string.sub(marker, 1, 1) == 'K' then
      answer = string.sub(marker, 2, 33) .. string.sub(marker, 50)
    else
      answer = 'P' .. string.sub(marker, 50)
      -- This try is published under the first one's marker: from now on the failure of one try says nothing about the key.
      markers[name] = 'R' .. string.sub(marker, 2)
      redis.call('SET', prefix .. 'k:' .. name, markers[name], 'EX', ARGV[4])
    end
  elseif ARGV[at + 5] == '1' then
    answer = 3
  else
    local over = take_units(ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]))
    answer = over or 0
    if not over and name ~= '' then
      markers[name] = 'P' .. id_and_fingerprint .. ARGV[at + 4]
      redis.call('SET', prefix .. 'k:' .. name, markers[name], 'EX', ARGV[4])
    end
  end
  answers[i + 2] = answer
end

-- Writes.
for sku, of in pairs(skus) do
  for minute, users in pairs(of.touched) do
    local fields = {}
    for user, units in pairs(users) do
      fields[#fields + 1] = user
      fields[#fields + 1] = units
    end
    redis.call('HSET', queued_key(sku, minute), unpack(fields))
    redis.call('EXPIRE', queued_key(sku, minute), ARGV[3])
  end
end
return answers
