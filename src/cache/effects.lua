-- The hints of one committed batch, unless newer ones were applied before. Hints about ended holds come with the position of the batch
-- before them.
--
-- ARGV: prefix, partition, epoch, position, life of units and fence (s), message, number of groups of units,
--       number of SKUs whose units are to be forgotten first, { sku }*, then
--       per group of units: sku, number of users, { user, units }*,
--       then per group of settled requests until the end: sku, minute, number of users, { user, quantity }*.
-- Returns 1 if applied.
local prefix, epoch, position, life = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]

-- A stale writer that wakes after its successor must not turn anything back.
local fence_key = prefix .. 'f:' .. ARGV[2]
local fence = redis.call('GET', fence_key)
local is_repeat = false
if fence then
  local fence_epoch, fence_position = string.match(fence, '^(%d+) (%d+)$')
  fence_epoch, fence_position = tonumber(fence_epoch), tonumber(fence_position)
  if fence_epoch > epoch or (fence_epoch == epoch and fence_position > position) then return 0 end
  is_repeat = fence_position >= position
end
redis.call('SET', fence_key, ARGV[3] .. ' ' .. ARGV[4], 'EX', life)

local at = 9 + tonumber(ARGV[8])
for sku = 9, at - 1 do redis.call('DEL', prefix .. 'u:' .. ARGV[sku]) end
for _ = 1, tonumber(ARGV[7]) do
  local key, last = prefix .. 'u:' .. ARGV[at], at + 1 + 2 * tonumber(ARGV[at + 1])
  local set, gone = {}, {}
  for user = at + 2, last, 2 do
    if ARGV[user + 1] == '0' then
      gone[#gone + 1] = ARGV[user]
    else
      set[#set + 1] = ARGV[user]
      set[#set + 1] = ARGV[user + 1]
    end
  end
  if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
  if #set > 0 then redis.call('HSET', key, unpack(set)) end
  redis.call('EXPIRE', key, life)
  at = last + 1
end

while at <= #ARGV do
  local key, last = prefix .. 'q:' .. ARGV[at] .. ':' .. ARGV[at + 1], at + 2 + 2 * tonumber(ARGV[at + 2])
  -- A claim repeats the last batch: its requests were settled by the first writer, and settling is the one thing here that adds up.
  if not is_repeat then
    local users, settled = {}, {}
    for user = at + 3, last, 2 do
      users[#users + 1] = ARGV[user]
      settled[#settled + 1] = tonumber(ARGV[user + 1])
    end
    local set, gone = {}, {}
    for i, units in ipairs(redis.call('HMGET', key, unpack(users))) do
      local left = units and tonumber(units) - settled[i]
      if left and left > 0 then
        set[#set + 1] = users[i]
        set[#set + 1] = left
      elseif left then
        gone[#gone + 1] = users[i]
      end
    end
    if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
    if #set > 0 then redis.call('HSET', key, unpack(set)) end
  end
  at = last + 1
end

redis.call('PUBLISH', prefix .. 'decisions', ARGV[6])
return 1
